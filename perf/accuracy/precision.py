"""Error of the half precisions against float32, on the reference inputs of the tests."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from builder import load_detector
from builder.checkpoint import DTYPES
from perf.machine import command_line
from perf.records import write_record


@dataclass(frozen=True)
class PrecisionError:
    """Relative errors ‖half - float32‖ / ‖float32‖ of one precision on one input.

    A rounding is enough to swap the ranks of two proposals, and with them their content queries; so logits and boxes
    are decoded from the proposals that float32 chose. `same_proposals` is the share of proposals chosen by both.
    """

    case: str
    precision: str
    memory: float
    logits: float
    boxes: float
    max_box_error: float  # in shares of the image side
    same_proposals: float


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return ‖actual - expected‖ / ‖expected‖ in float64."""
    expected = expected.double()
    return float((actual.double() - expected).norm() / expected.norm())


def measure_precision(golden: Path) -> list[PrecisionError]:
    """Measure every half precision on every case of a golden file (`config_json`, `sd/...`, `CASE/image`, ...)."""
    with np.load(golden) as file:
        arrays = dict(file)
    config = json.loads(bytes(arrays["config_json"]).decode())
    weights = {key.removeprefix("sd/"): torch.from_numpy(arrays[key]) for key in arrays if key.startswith("sd/")}
    cases = sorted({key.split("/")[0] for key in arrays if key.endswith("/image")})
    halves = [precision for precision in DTYPES if precision != "float32"]
    return [_measure(config, weights, arrays, case, half) for half in halves for case in cases]


def _measure(
    config: dict[str, object], weights: dict[str, Tensor], arrays: dict[str, Any], case: str, precision: str
) -> PrecisionError:
    pixels, sizes = torch.from_numpy(arrays[f"{case}/image"]), torch.from_numpy(arrays[f"{case}/valid_hw"]).int()
    # Any: the stages that are compared are Co-DINO's, whose reference inputs these are.
    full: Any = load_detector(config, weights)
    half: Any = load_detector(config, weights, precision)  # type: ignore[arg-type]
    memory, half_memory = full.encode(pixels, sizes), half.encode(pixels, sizes)
    proposals, half_proposals = full.proposals(*memory), half.proposals(*half_memory)
    logits, boxes = full.decode(memory, proposals.boxes)
    half_logits, half_boxes = half.decode(half_memory, proposals.boxes)
    shared = [
        len(set(a) & set(b)) / len(a)
        for a, b in zip(proposals.indices.tolist(), half_proposals.indices.tolist(), strict=True)
    ]
    return PrecisionError(
        case,
        precision,
        relative_error(half_memory.tokens, memory.tokens),
        relative_error(half_logits, logits),
        relative_error(half_boxes, boxes),
        float((half_boxes - boxes).abs().max()),
        sum(shared) / len(shared),
    )


def write_precision_report(golden: Path, output: Path) -> list[PrecisionError]:
    """Measure, and write the rows with versions and hardware as JSON to `output`."""
    rows = measure_precision(golden)
    report = {
        "command": command_line(),
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "rows": [asdict(row) for row in rows],
    }
    write_record(report, output.parent, output.name)
    return rows
