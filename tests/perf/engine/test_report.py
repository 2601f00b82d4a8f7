from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("torch")

from builder.pipeline.export import InputSpec  # after the check for torch
from builder.variants import get_variant
from perf.engine.report import published_ms, to_markdown
from tests.perf.engine.cases import CASE, ENGINE, HALF


def test_table_has_speed_ups_and_the_published_figures_labelled() -> None:
    cases = [dataclasses.asdict(case) for case in (CASE, HALF, ENGINE)]
    machine = {"cpu": "x", "cores": 1, "gpus": ["NVIDIA H200, 580"], "python": "3", "packages": {}}
    record = {
        "command": "codetr", "time": "now", "machine": machine, "cuda": "13.0", "device": "cuda", "weights": "x.pth",
        "seconds": 10.0, "tf32": False, "complete": True, "profiles": [], "cases": cases,
    }  # fmt: skip
    lines = to_markdown(record).splitlines()
    rows = [line for line in lines if line.startswith("| 1152x768")]
    assert rows[0].startswith("| 1152x768 | PyTorch float32 | 100.00 ± 0.2% | 101.00 | 102.00 | 10.0 | 1.00x | 0.40x |")
    assert rows[2] == (
        "| 1152x768 | torch float16 | 20.00 ± 0.2% (unsteady) | 101.00 | 102.00 | 10.0 | 5.00x | 2.00x | 3.50 | 2500.0 "
        "| 50% | 99.0%, scores ± 2.0e-03 | 30.2 |"
    )
    assert any("published reference on other hardware" in line for line in lines)
    assert any("TF32 is off" in line for line in lines)


@pytest.mark.parametrize(
    ("variant", "spec", "implementation", "precision", "expected"),
    [
        ("co_dino_swin_l_o365", InputSpec(1280, 1920), "torch", "float16", 79.5),
        ("co_dino_swin_l_o365", InputSpec(608, 608), "PyTorch", "float32", 59.0),
        ("co_dino_swin_l_o365", InputSpec(608, 608), "PyTorch", "bfloat16", None),
        ("co_dino_swin_l_o365", InputSpec(608, 608, 2), "PyTorch", "float32", None),
        ("co_dino_swin_l_o365", InputSpec(1920, 1280), "torch", "float16", None),
        ("co_dino_r50_12e", InputSpec(608, 608), "PyTorch", "float32", None),
    ],
    ids=["engine", "PyTorch", "other precision", "other batch", "turned image", "other network"],
)
def test_published_figures_stand_beside_their_own_case_only(
    variant: str, spec: InputSpec, implementation: str, precision: str, expected: float | None
) -> None:
    assert published_ms(get_variant(variant), spec, implementation, precision) == expected
