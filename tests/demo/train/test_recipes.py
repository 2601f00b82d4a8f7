from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save

from builder.checkpoint import load_detector
from builder.families import presets
from demo import WEIGHTS, Family
from demo.train.recipes import RECIPES, train_demo
from demo.train.run import Settings, train
from serving.errors import CodetrError
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


@pytest.mark.parametrize("name", ["run-1.safetensors", WEIGHTS["co_dino"].name])
@pytest.mark.parametrize("content", [b"precious", b"", save({"a": torch.zeros(1)})], ids=["text", "empty", "weights"])
def test_weights_of_somebody_else_are_not_taken_for_a_runs(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CodetrError, match=f"{name} is not of an earlier training; move it away"):
        train_demo("co_dino", tmp_path, device="cpu")
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("content", [b"precious", b"", b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_a_checkpoint_of_somebody_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(CodetrError, match=r"checkpoint.pt is no checkpoint of a training; move it away"):
        train(CO_DINO, tmp_path, Settings(1, 1), device="cpu", workers=0)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content
