import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from builder.engines.kinds import KINDS
from builder.families import FAMILIES
from builder.quantise.recipe import Recipe
from perf.accuracy import quantised
from serving.errors import CodetrError
from tests.toy_family import SMALL, TOY, toy_weights


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    monkeypatch.setattr("builder.quantise.trials.SECONDS", 0.0)
    torch.save(toy_weights(), tmp_path / "toy.pth")
    recipes = [Recipe(("classify",), count=2)]
    told = []
    made = quantised.measure(
        SMALL, tmp_path / "toy.pth", "onnx", 2, recipes, tmp_path, lambda name: nullcontext(), told.append
    )
    assert [case.name for case in told] == [case["name"] for case in made["cases"]]
    assert json.loads((tmp_path / "onnx-toy_small.json").read_text()) == made
    return made


def test_every_way_to_quantise_stands_beside_float32(record):
    plain, engine, defaults, recipe = record["cases"]
    assert (plain["name"], plain["ms"], plain["found_again"]) == ("PyTorch", None, 1.0)
    assert (engine["precision"], engine["quantised"], engine["found_again"]) == ("float32", 0, 1.0)
    assert (defaults["name"], defaults["precision"], defaults["quantised"]) == (quantised.DEFAULTS, "int8", None)
    assert (recipe["name"], recipe["precision"], recipe["quantised"]) == ("classify; percentile", "int8", 1)
    assert all(case["processor_ms"] > 0 and case["ms"] > 0 for case in (engine, defaults, recipe))
    assert recipe["mib"] < engine["mib"]
    assert all(case["ap"] is None for case in record["cases"]), "its classes are no shapes"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(("neck",)), "'neck' chooses no linear layer or convolution of toy_small"),
        (Recipe(("classify",), images=Path("nowhere")), "there is no folder nowhere of images to calibrate on"),
    ],
)
def test_a_wrong_recipe_is_named_before_anything_is_measured(recipe, message, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    monkeypatch.setattr(quantised, "run_batched", lambda *arguments: pytest.fail("the detector was run"))
    torch.save(toy_weights(), tmp_path / "toy.pth")
    with pytest.raises(CodetrError, match=message):
        quantised.measure(SMALL, tmp_path / "toy.pth", "onnx", 2, [recipe], tmp_path, None, None)


class Encoding(nn.Module):
    """Its encoder gives two levels; `factor` is what is wrong with them."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.encoder = Levels()
        self.factor = factor

    def forward(self, images, image_sizes):
        self.encoder(images.float() * self.factor)
        return torch.zeros(1, 1, 4), torch.zeros(1, 1), torch.zeros(1, 1)


class Levels(nn.Module):
    def forward(self, x):
        return [x, x[:, ::2]]


def test_all_that_leaves_the_encoder_is_compared(monkeypatch):
    monkeypatch.setattr(
        quantised, "EagerDetector", lambda detector: lambda *arrays: detector(*map(torch.tensor, arrays))
    )
    images, sizes = np.full((2, 4, 6, 3), 7, np.uint8), np.array([[4, 6]] * 2, np.int32)
    bench: Any = object.__new__(quantised._Bench)
    bench.kind, bench.pixels, bench.sizes, bench.reference = KINDS["onnx"], images, sizes, Encoding()
    assert quantised._encoded(bench.reference, images, sizes).shape == (2 * (72 + 36),)
    assert bench._encoder_error(Encoding(1.01)) == pytest.approx(0.01, rel=1e-3)


def test_what_is_often_taken_for_quantisation_is_every_layer_with_its_extremes():
    assert quantised.naive() == Recipe(("*",), "max")
