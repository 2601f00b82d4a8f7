import json
from contextlib import nullcontext

import pytest
import torch

from builder.families import FAMILIES
from builder.quantise.recipe import Recipe
from perf.accuracy import quantised
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


def test_what_is_often_taken_for_quantisation_is_every_layer_with_its_extremes():
    assert quantised.naive() == Recipe(("*",), "max")
