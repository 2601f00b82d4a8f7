from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from builder.co_dino.config import ResNetConfig, SwinConfig, Variant, VariantError
from builder.co_dino.levels import check_limits, level_shapes, token_count
from builder.co_dino.model import CoDINO
from builder.co_dino.presets import PRESETS
from builder.parts.limits import TENSORRT_MAX_TOPK
from tests.smallest import SMALLEST

SWIN = SwinConfig(16, (1, 1, 1, 1), (1, 1, 2, 2), window_size=4, mlp_ratio=1)
SMALL = replace(SMALLEST, backbone=SWIN, num_levels=4)  # of four maps
BACKBONES = {
    "swin": SMALL,
    "swin, patches of 2": replace(SMALL, backbone=replace(SMALL.backbone, patch_size=2)),
    "swin, last maps": replace(SMALL, backbone=replace(SMALL.backbone, out_indices=(1, 2, 3)), num_levels=6),
    "resnet": replace(SMALL, backbone=ResNetConfig(base_channels=8, stem_channels=8), num_levels=5),
    "resnet, caffe": replace(
        SMALL, backbone=ResNetConfig(base_channels=8, stem_channels=8, style="caffe", out_indices=(1, 2, 3))
    ),
}


@pytest.mark.parametrize("variant", BACKBONES.values(), ids=BACKBONES)
@pytest.mark.parametrize("size", [(32, 32), (33, 95), (97, 130), (129, 257), (608, 799)])
def test_the_levels_are_those_of_the_network(variant: Variant, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = CoDINO(variant)
        levels = network.neck(network.backbone(torch.empty(2, 3, *size)))
    shapes = [(level.shape[2], level.shape[3]) for level in levels]
    assert level_shapes(variant, *size) == shapes
    assert token_count(variant, *size) == sum(h * w for h, w in shapes)


def test_the_published_variants_have_no_fault_at_their_size() -> None:
    for variant in PRESETS.values():
        check_limits(variant, *variant.input_size, tensorrt=True)


def test_as_many_tokens_as_queries_are_enough() -> None:
    tokens = token_count(SMALL, 33, 64)
    check_limits(replace(SMALL, num_queries=tokens), 33, 64)
    with pytest.raises(
        VariantError,
        match=rf"height=33 and width=64 give variant 'smallest' {tokens} encoder tokens, of which it takes "
        rf"num_queries={tokens + 1}",
    ):
        check_limits(replace(SMALL, num_queries=tokens + 1), 33, 64)


@pytest.mark.parametrize("name", ["num_queries", "max_detections"])
def test_tensorrt_has_a_largest_topk(name: str) -> None:
    fits = replace(SMALL, **{"num_queries": 2000, name: TENSORRT_MAX_TOPK})
    check_limits(fits, 1024, 1024, tensorrt=True)
    exceeds = replace(fits, **{name: TENSORRT_MAX_TOPK + 1})
    check_limits(exceeds, 1024, 1024)
    with pytest.raises(VariantError, match=rf"{name}=3841 is more than the 3840 that TensorRT's TopK can have"):
        check_limits(exceeds, 1024, 1024, tensorrt=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"num_levels": 7, "num_groups": 32}, "a last level of one token, and its group norm", id="norm"),
        pytest.param({"num_levels": 9}, "num_levels=9 is more than the 8", id="levels"),
        pytest.param({"embed_dim": 36, "num_heads": 6, "num_groups": 4}, "gives 6 channels a head", id="channels"),
    ],
)
def test_what_the_operator_cannot_do_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(VariantError, match=message):
        check_limits(replace(SMALL, **changes), 256, 256)
