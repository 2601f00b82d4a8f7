"""A repository as `codetr build` writes it, but for a detector of fixed cost and the settings of a case."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from builder.engines.kinds import BuiltEngine, EngineKind
from builder.pipeline.export import InputSpec
from builder.pipeline.manifest import describe
from builder.pipeline.repository import CANDIDATES, INPUTS, write_repository
from builder.variants import SwinConfig, Variant
from perf.cost.cases import MAX_BATCH_SIZE, Case
from serving.contract import DETECTOR, GUESTS, POSTPROCESS, PREPROCESS

MODEL = Path(__file__).with_name("fixed_cost_model.py")
# Its engine file says what a batch costs; the settings are those of the other detector that Python runs on the CPU.
FIXED_COST = EngineKind("fixed_cost", "cost.json", "configs/onnx.pbtxt", MODEL, ("float32",), ("cpu",))
VARIANT = Variant("fixed_cost", SwinConfig(), num_classes=1, class_names=("object",))


def write_cost_repository(destination: Path, case: Case, cost_ms: float, max_batch: int = MAX_BATCH_SIZE) -> Path:
    """Write the repository of a case, with an engine of `cost_ms` milliseconds a batch, and return its folder."""
    spec = InputSpec(case.height, case.width, max_batch)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, FIXED_COST.file_name)
        file.write_text(json.dumps({"cost_ms": cost_ms}) + "\n", encoding="utf-8")
        engine = BuiltEngine(file, FIXED_COST, "cpu", INPUTS, CANDIDATES)
        manifest = describe(VARIANT, None, 0, engine, "float32", spec, None)
        write_repository(destination, engine, VARIANT, spec, manifest)
    edit_config(destination, DETECTOR, lambda config: _set_batching(config, case))
    if case.guests:
        edit_config(destination, DETECTOR, lambda config: _add_guests(config, case.guests))
    edit_config(destination, PREPROCESS, lambda config: _set_instances(config, case.preprocess))
    edit_config(destination, POSTPROCESS, lambda config: _set_instances(config, case.postprocess))
    return destination


def edit_config(repository: Path, model: str, change: Callable[[Any], None]) -> None:
    """Change a model's settings, as whoever runs a server may."""
    path = repository / model / "config.pbtxt"
    config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    change(config)
    path.write_text(text_format.MessageToString(config, as_utf8=True), encoding="utf-8")


def _set_instances(config: Any, count: int) -> None:
    config.instance_group[0].count = count


def _add_guests(config: Any, count: int) -> None:
    config.instance_group.add(name=f"{config.name}{GUESTS}", kind=config.instance_group[0].kind, count=count)


def _set_batching(config: Any, case: Case) -> None:
    if not case.dynamic_batching:
        config.ClearField("dynamic_batching")
    elif case.delay_ms:
        config.dynamic_batching.max_queue_delay_microseconds = round(case.delay_ms * 1e3)
