"""Three empty steps between which tensors of an engine's sizes pass: what its server takes whatever the steps do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from serving.contract import DETECTOR, MODELS, STEPS, model_name
from serving.manifest import FILES, MANIFEST

MODEL = Path(__file__).with_name("empty_model.py")
# What a step in Python has no use for.
UNUSED = ("platform", "default_model_filename", "optimization", "model_warmup")


def write_floor(repository: Path, name: str, destination: Path, waits: Mapping[str, float]) -> Path:
    """Write one engine's repository anew, with steps that do nothing, and return its folder.

    Tensors, instances, queues and batches are those of `repository`; a step of another backend becomes Python's.

    Args:
        repository: of the engine.
        name: the engine's.
        destination: a folder that is not there yet.
        waits: milliseconds that a step lets pass with each request, by its name in the contract; 0 if not given.
    """
    for role in MODELS:
        model = model_name(role, name)
        folder = destination / model
        (folder / "1").mkdir(parents=True)
        text = (repository / model / "config.pbtxt").read_text(encoding="utf-8")
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        if role in STEPS:
            for field in UNUSED:
                config.ClearField(field)
            config.backend = "python"
            config.parameters["wait_ms"].string_value = f"{waits.get(role, 0.0):g}"
            shutil.copyfile(MODEL, folder / "1" / "model.py")
        (folder / "config.pbtxt").write_text(text_format.MessageToString(config, as_utf8=True), encoding="utf-8")
    (destination / model_name(DETECTOR, name) / MANIFEST).write_text(json.dumps({FILES: {}}), encoding="utf-8")
    return destination
