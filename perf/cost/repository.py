"""A repository as `codetr build` writes it, but for a detector of fixed cost and the settings of a case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from builder.co_dino.config import SwinConfig, Variant
from builder.engines.kinds import BuiltEngine, EngineKind
from builder.pipeline.export import InputSpec
from builder.pipeline.repository import CANDIDATES, write_repository
from perf.cost.cases import MAX_BATCH_SIZE, Case
from serving.contract import DETECTOR, POSTPROCESS, PREPROCESS

MODEL = Path(__file__).with_name("fixed_cost_model.py")
# A Python model, which is its own engine file.
FIXED_COST = EngineKind("fixed cost", "model.py", "configs/onnx.pbtxt", None, ("float32",), ("cpu",))


def write_cost_repository(destination: Path, case: Case, cost_ms: float) -> Path:
    """Write the repository of a case, with an engine of `cost_ms` milliseconds a batch, and return its folder."""
    write_repository(
        destination,
        BuiltEngine(MODEL, FIXED_COST, "cpu", CANDIDATES),
        Variant("fixed cost", SwinConfig(), num_classes=1, class_names=("object",)),
        InputSpec(case.height, case.width, MAX_BATCH_SIZE),
        {"engine": FIXED_COST.name, "cost_ms": cost_ms},
    )
    _edit(destination, DETECTOR, lambda config: _set_detector(config, case, cost_ms))
    _edit(destination, PREPROCESS, lambda config: _set_instances(config, case.preprocess))
    _edit(destination, POSTPROCESS, lambda config: _set_instances(config, case.postprocess))
    return destination


def _edit(repository: Path, model: str, change: Callable[[Any], None]) -> None:
    path = repository / model / "config.pbtxt"
    config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    change(config)
    path.write_text(text_format.MessageToString(config, as_utf8=True), encoding="utf-8")


def _set_instances(config: Any, count: int) -> None:
    config.instance_group[0].count = count


def _set_detector(config: Any, case: Case, cost_ms: float) -> None:
    config.parameters.clear()
    config.parameters["cost_ms"].string_value = f"{cost_ms:g}"
    if not case.dynamic_batching:
        config.ClearField("dynamic_batching")
    elif case.delay_ms:
        config.dynamic_batching.max_queue_delay_microseconds = round(case.delay_ms * 1e3)
