"""The encoder's levels by the input's size, and what no size or variant can have: checked before anything is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from builder.co_dino.config import SwinConfig, Variant, VariantError
from builder.parts.limits import check_transformer

if TYPE_CHECKING:
    from builder.parts.position import Shapes

STEM_STRIDE = 4  # of ResNet's first map: a convolution and a pooling of stride 2


def level_shapes(variant: Variant, height: int, width: int) -> Shapes:
    """Return (h, w) of each level for an input of `height` x `width` pixels, finest first.

    Every step of backbone and neck halves a side and rounds up: patches and merges pad, and convolutions and poolings
    of stride 2 have a padding of half their kernel.
    """
    backbone = variant.backbone
    first = backbone.patch_size if isinstance(backbone, SwinConfig) else STEM_STRIDE
    strides = [first * 2**i for i in backbone.out_indices]
    while len(strides) < variant.num_levels:
        strides.append(2 * strides[-1])  # the neck's extra levels
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def token_count(variant: Variant, height: int, width: int) -> int:
    """Return the number of the encoder's tokens for an input of `height` x `width` pixels."""
    return sum(h * w for h, w in level_shapes(variant, height, width))


def check_limits(variant: Variant, height: int, width: int, tensorrt: bool = False) -> None:
    """Check that a variant's network can run on an input of `height` x `width` pixels, and in TensorRT if asked.

    Raises:
        VariantError: it cannot; names the setting, its value, what is possible and what to do.
    """
    check_transformer(variant, token_count(variant, height, width), height, width, tensorrt)
    if level_shapes(variant, height, width)[-1] == (1, 1) and variant.embed_dim == variant.num_groups:
        raise VariantError(  # a norm of one value; PyTorch refuses it at batch 1
            f"height={height} and width={width} give variant {variant.name!r} a last level of one token, and its group "
            f"norm one value of num_groups={variant.num_groups}; give a larger height or width"
        )
