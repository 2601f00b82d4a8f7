from dataclasses import replace

import pytest
import torch

from builder import VariantError, random_detector
from builder.families import family_of
from builder.rtdetrv2.config import PResNetConfig
from builder.rtdetrv2.levels import check_limits, level_shapes
from builder.rtdetrv2.presets import PRESETS

R18 = PRESETS["rtdetrv2_r18vd"]
TINY = replace(
    R18,
    num_queries=10,
    max_detections=10,
    backbone=PResNetConfig(18, (1, 1, 1, 1), 8, (4, 4, 4, 4)),
    encoder=replace(R18.encoder, embed_dim=16, feedforward_dim=8),
    embed_dim=32,
    feedforward_dim=8,
    decoder_layers=1,
)


@pytest.mark.parametrize(
    ("height", "width"), [(640, 640), (64, 96), (89, 96), (96, 122), (32, 416), (90, 122), (121, 255)]
)
@pytest.mark.parametrize("levels", [3, 5])
def test_sizes_that_are_possible(height, width, levels):
    variant = replace(TINY, num_levels=levels, num_points=(2,) * levels)
    check_limits(variant, height, width)
    memory = random_detector(variant).encode(torch.zeros(1, 3, height, width))
    assert memory.shapes == level_shapes(variant, height, width)


@pytest.mark.parametrize(("height", "width", "name"), [(88, 96, "height=88"), (96, 33, "width=33"), (65, 65, "height")])
def test_sizes_whose_maps_do_not_double_are_refused(height, width, name):
    with pytest.raises(VariantError, match=rf"{name}.* give a multiple of 32, such as"):
        family_of(TINY).check_size(TINY, height, width, False)
    with pytest.raises(RuntimeError):
        random_detector(TINY).encode(torch.zeros(1, 3, height, width))


def test_too_few_tokens_are_refused():
    with pytest.raises(VariantError, match=r"height=64 and width=64 .* 84 encoder tokens, .* num_queries=300"):
        check_limits(R18, 64, 64)
    check_limits(R18, 128, 128)


def test_discrete_sampling_is_refused_where_upstream_has_none():
    discrete = replace(TINY, sampling="discrete")
    check_limits(discrete, 96, 96)
    check_limits(discrete, 96, 128)
    check_limits(discrete, 96, 90)  # the same maps as a square
    with pytest.raises(VariantError, match=r"height=128 and width=96: discrete sampling .* give a square size"):
        check_limits(discrete, 128, 96)


def test_limits_of_the_operator_are_only_for_those_who_use_it():
    odd = replace(TINY, embed_dim=12, num_heads=2)
    with pytest.raises(VariantError, match="gives 6 channels a head"):
        check_limits(odd, 96, 96)
    check_limits(replace(odd, sampling="discrete"), 96, 96)
    assert (odd.uses_operator, replace(odd, sampling="discrete").uses_operator) == (True, False)


def test_the_published_variants_have_no_fault_at_their_size():
    for variant in PRESETS.values():
        check_limits(variant, *variant.input_size, tensorrt=True)


def test_tensorrts_limit():
    many = replace(TINY, num_queries=4000)
    check_limits(many, 640, 640)
    with pytest.raises(VariantError, match="num_queries=4000 is more than the 3840"):
        check_limits(many, 640, 640, tensorrt=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 2, "class_names": None, "max_detections": 21}, "10 queries of 2 classes give fewer"),
        ({"embed_dim": 30}, "embed_dim=30 is no multiple of num_heads=8"),
        ({"num_levels": 2, "num_points": (4, 4)}, "expected at least 3 levels"),
        ({"num_points": (4, 4)}, r"num_points=\(4, 4\)"),
        ({"encoder": replace(TINY.encoder, embed_dim=10, num_heads=2)}, "embed_dim=10 is no multiple of 4"),
        ({"encoder": replace(TINY.encoder, attended=(-1,))}, r"encoder.attended=\(-1,\)"),
    ],
)
def test_impossible_variants_are_refused(settings, message):
    with pytest.raises(VariantError, match=message):
        replace(TINY, **settings)
