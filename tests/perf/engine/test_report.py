from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("torch")

from builder.pipeline.export import InputSpec  # after the check for torch
from builder.variants import get_variant
from perf.engine.published import published_ms, sizes_to_measure
from perf.engine.report import _choices, label, to_markdown, write
from tests.perf.engine.cases import CASE, ENGINE, HALF

RECORD = {
    "command": "codetr", "time": "now", "cuda": "13.0", "device": "cuda", "weights": "x.pth", "seconds": 10.0,
    "machine": {"cpu": "x", "cores": 1, "gpus": ["NVIDIA H200, 580"], "python": "3", "packages": {}},
    "tf32": False, "complete": True, "profiles": [],
}  # fmt: skip


def test_table_has_speed_ups_and_the_published_figures_labelled() -> None:
    cases = [dataclasses.asdict(case) for case in (CASE, HALF, ENGINE)]
    lines = to_markdown({**RECORD, "cases": cases}).splitlines()
    rows = [line for line in lines if line.startswith("| 1152x768")]
    assert rows[0].startswith("| 1152x768 | PyTorch float32 | 100.00 ± 0.2% | 101.00 | 102.00 | 10.0 | 1.00x | 0.40x |")
    assert rows[2] == (
        "| 1152x768 | torch float16 | 20.00 ± 0.2% (unsteady) | 101.00 | 102.00 | 10.0 | 5.00x | 2.00x | 3.50 | 2500.0 "
        "| 50% | 99.0%, scores ± 2.0e-03 | 30.2, RTX 4090 |"
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


@pytest.mark.parametrize(
    ("variant", "sizes"),
    [("co_dino_swin_l_o365", [(1920, 1280), (1152, 768), (608, 608)]), ("co_dino_demo", [(480, 320)])],
    ids=["published", "usual"],
)
def test_sizes_are_the_published_ones_or_the_usual_one(variant: str, sizes: list[tuple[int, int]]) -> None:
    assert sizes_to_measure(get_variant(variant)) == sizes


def test_an_engine_with_a_name_of_its_own_is_told_from_others() -> None:
    named = [dataclasses.asdict(dataclasses.replace(ENGINE, name=name)) for name in ("codetr", "tf32")]
    older = {key: value for key, value in named[0].items() if key != "name"}
    assert [label(case) for case in (*named, older)] == ["torch float16", "torch float16 (tf32)", "torch float16"]
    text = to_markdown({**RECORD, "cases": named})
    assert "| torch float16 (tf32) |" in text


def test_several_variants_make_a_picture_to_choose_by(tmp_path: Path) -> None:
    small = dataclasses.replace(ENGINE, variant="small", box_ap=48.1, p50_ms=2.0, published_ms=None)
    large = dataclasses.replace(ENGINE, variant="large", box_ap=64.1)
    slow = dataclasses.replace(large, implementation="PyTorch", p50_ms=99.0)
    batch = dataclasses.replace(small, batch=4, p50_ms=4.0)
    record = {**RECORD, "cases": [dataclasses.asdict(case) for case in (slow, large, small, batch)]}
    assert _choices(record["cases"]) == [("large", 20.0, 64.1), ("small", 2.0, 48.1)]
    write(record, tmp_path)
    assert "large, batch 1, published AP 64.1" in (tmp_path / "engine.md").read_text()
    assert "](latency-accuracy.svg)" in (tmp_path / "engine.md").read_text()
    assert (tmp_path / "latency-accuracy.svg").read_text().startswith("<svg")
    assert "latency-accuracy" not in to_markdown({**record, "cases": record["cases"][:2]})
