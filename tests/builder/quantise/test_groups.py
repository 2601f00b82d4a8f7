from collections import Counter

import pytest
import torch
from torch import nn

from builder.engines import EngineError
from builder.families import FAMILIES, family_of
from builder.quantise.groups import GROUPS, chosen_layers, groups_of
from builder.variants import get_variant
from tests.toy_family import SMALL, TOY, ToyDetector

# Layers of each group, counted in the papers' figures: Swin-T has 12 blocks of four linear layers and 3 mergings, R50
# 53 convolutions; each encoder layer has two projections (DETR: one that is a layer) and an FFN of two.
COUNTS = {
    "co_dino_demo": {"backbone-convs": 1, "backbone-linears": 51, "neck": 5, "projections": 6, "encoder-ffn": 6},
    "co_dino_r50_12e": {"backbone-convs": 53, "neck": 5, "projections": 12, "encoder-ffn": 12},
    "rtdetrv2_demo": {"backbone-convs": 23, "neck": 24, "projections": 7, "encoder-ffn": 2},
    "detr_r50": {"backbone-convs": 53, "projections": 7, "encoder-ffn": 12},
}


def detector_of(name):
    variant = get_variant(name)
    with torch.device("meta"):
        return family_of(variant).network(variant).deploy()


@pytest.fixture(scope="module")
def detectors():
    return {name: detector_of(name) for name in COUNTS}


@pytest.mark.parametrize("name", COUNTS)
def test_every_family_has_its_groups(detectors, name):
    groups = groups_of(detectors[name])
    assert {group: len(layers) for group, layers in groups.items()} == COUNTS[name]
    assert list(groups) == [group for group in GROUPS if group in groups]


@pytest.mark.parametrize("name", COUNTS)
def test_no_layer_is_in_two_groups_and_no_delicate_one_in_any(detectors, name):
    found = [layer for layers in groups_of(detectors[name]).values() for layer in layers]
    assert max(Counter(found).values()) == 1
    for word in ("decoder", "head", "sampling_offsets", "attention_weights", "proposals"):
        assert not [layer for layer in found if word in layer]


def test_words_choose_groups_and_patterns_together(detectors):
    detector = detectors["co_dino_demo"]
    chosen = chosen_layers(detector, ["encoder-ffn", "decoder.layers.*.ffn.*", "encoder.layers.0.*"])
    assert "decoder.layers.2.ffn.0" in chosen  # what no group has, asked for by name
    assert "encoder.layers.0.self_attn.sampling_offsets" in chosen
    assert "encoder.layers.1.self_attn.value_proj" not in chosen
    order = list(dict(detector.named_modules()))
    assert list(chosen) == sorted(chosen, key=order.index)
    assert all(isinstance(layer, nn.Linear | nn.Conv2d) for layer in chosen.values())


@pytest.mark.parametrize("word", ["backbone-linears", "backbone", "encoder.layers", "decoder.layers.9.*"])
def test_a_word_that_chooses_nothing_is_an_error_that_names_the_groups(detectors, word):
    with pytest.raises(EngineError, match=r"chooses no linear layer .* backbone-convs, projections, encoder-ffn"):
        chosen_layers(detectors["detr_r50"], ["projections", word])


def test_a_family_without_parts_has_patterns_alone(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    detector = ToyDetector(SMALL)
    assert groups_of(detector) == {}
    assert list(chosen_layers(detector, ["class*"])) == ["classify"]
    with pytest.raises(EngineError, match="its groups are none, and any other word is a pattern"):
        chosen_layers(detector, ["neck"])
