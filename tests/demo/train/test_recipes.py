from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from safetensors import safe_open

from builder.checkpoint import load_detector
from builder.families import presets
from demo import WEIGHTS, Family
from demo.train.recipes import RECIPES, train_demo
from demo.train.run import Settings
from tests.demo.train.tiny import CO_DINO, RTDETRV2

TINY = {"co_dino": CO_DINO, "rtdetrv2": RTDETRV2}


def test_each_family_with_weights_has_a_recipe() -> None:
    assert RECIPES.keys() == WEIGHTS.keys()
    for family, recipe in RECIPES.items():
        assert presets()[f"{family}_demo"] == recipe.variant
        assert recipe.variant.family == family


@pytest.mark.parametrize("family", RECIPES)
def test_runs_follow_each_other_in_pieces(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = (Settings(2, 1, seed=7, warmup_steps=1), Settings(1, 1, seed=8, warmup_steps=1))
    monkeypatch.setitem(RECIPES, family, replace(RECIPES[family], variant=TINY[family], runs=runs))

    def piece() -> Path | None:
        console = Console(quiet=True)
        return train_demo(family, tmp_path, command="x", device="cpu", workers=0, console=console, minutes=0)

    assert piece() is None
    assert not (tmp_path / "run-1.safetensors").exists()
    weights = piece()
    assert weights == tmp_path / WEIGHTS[family].name
    load_detector(TINY[family], weights)
    with safe_open(weights, "pt") as file:
        assert file.metadata().items() >= {"training_command": "x", "data_seed": "7 and 8", "variant": "tiny"}.items()
    assert piece() == weights  # there is nothing left to do
