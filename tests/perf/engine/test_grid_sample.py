"""The export and TensorRT, which builds and runs the plans, are stand-ins."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from builder.checkpoint import random_detector
from builder.engines import EngineError
from builder.engines.eager import EagerDetector
from builder.engines.tensorrt.plans import Timings
from builder.operators.ms_deform_attn import ms_deform_attn
from builder.pipeline.export import InputSpec, uses_operator
from builder.variants import get_variant
from perf.engine import grid_sample
from serving.errors import CodetrError
from tests.perf.engine.cases import SMALL


class Attends(torch.nn.Module):
    """One call of the operator, on as many queries as it is given."""

    def forward(self, value: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        queries = points.shape[1]
        offsets, logits = torch.zeros(1, queries, 1, 1, 1, 2), torch.zeros(1, queries, 1, 1, 1)
        return ms_deform_attn(value, points, offsets, logits, [2, 2], None)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """By plan: whether the program has our operator, and the plugin that came with it."""
    found: dict[str, Any] = {}

    def build(onnx_file: Path, plan: Path, *arguments: Any, plugin: Path | None, **options: Any) -> None:
        found[plan.stem] = found.pop(onnx_file.name), plugin

    class Plan:
        """Answers as PyTorch, without the plugin a little later."""

        def __init__(self, plan: Path, plugin: Path | None, python: object) -> None:
            self.detector = EagerDetector(random_detector(SMALL))
            self.ms = 2.0 if plugin else 3.0

        def __call__(self, *inputs: Any) -> Any:
            return self.detector(*inputs)

        def measure(self, images: Any, sizes: Any, seconds: float, least: int) -> Timings:
            assert (len(images), len(sizes)) == (2, 2)
            return Timings([self.ms, self.ms, 100.0], 1.0, 1)

    program = torch.export.export(Attends(), (torch.zeros(1, 4, 1, 4), torch.zeros(1, 3, 1, 2)))
    assert uses_operator(program)
    monkeypatch.setattr(grid_sample, "export_detector", lambda detector, spec: program)
    monkeypatch.setattr(grid_sample, "plugin_library", lambda: tmp_path / "plugin.so")
    monkeypatch.setattr(grid_sample, "ChildPlan", Plan)
    monkeypatch.setattr("builder.engines.tensorrt.route.version_of", lambda python: "8.5.3.1")
    frontend = "builder.engines.tensorrt.onnx_frontend"
    monkeypatch.setattr(
        f"{frontend}.write_onnx", lambda of, path, version: found.update({path.name: uses_operator(of)})
    )
    monkeypatch.setattr(f"{frontend}.build_plan", build)
    return found


def measure(tmp_path: Path, name: str = "small") -> dict[str, Any]:
    detector = random_detector(SMALL if name == "small" else get_variant(name))
    return grid_sample.run(detector, "float32", InputSpec(64, 96, 2), tmp_path / "out", None, 0.1)


def test_one_plan_has_the_plugin_and_the_other_grid_sample(written: dict[str, Any], tmp_path: Path) -> None:
    record = measure(tmp_path)
    assert written == {"plugin": (True, tmp_path / "plugin.so"), "grid_sample": (False, None)}
    assert [case["matched"] for case in record["cases"].values()] == [1.0, 1.0]
    assert [case["p50_ms"] for case in record["cases"].values()] == [2.0, 3.0]
    assert record == json.loads((tmp_path / "out" / grid_sample.RECORD).read_text())


def test_a_plan_that_cannot_be_built_leaves_the_other(
    written: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(onnx_file: Path, plan: Path, *arguments: Any, plugin: Path | None, **options: Any) -> None:
        if plugin is None:
            raise EngineError("TensorRT built no plan")

    monkeypatch.setattr("builder.engines.tensorrt.onnx_frontend.build_plan", build)
    cases = measure(tmp_path)["cases"]
    assert cases["plugin"]["matched"] == 1.0
    assert cases["grid_sample"] == {"error": "TensorRT built no plan"}


def test_a_network_without_deformable_attention_is_refused(written: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match="detr_r50 has no deformable attention"):
        measure(tmp_path, "detr_r50")


def test_what_is_wrong_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["grid_sample", "rtdetrv2_demo", "--weights", str(tmp_path / "none.pth")])
    with pytest.raises(SystemExit, match=r"error: no checkpoint at .*none.pth"):
        grid_sample.main()
