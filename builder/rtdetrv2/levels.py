"""The memory's levels by the input's size, and the sizes that the network cannot have."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from builder.family import VariantError
from builder.parts.limits import check_transformer
from builder.rtdetrv2.config import RTDETRv2Config

if TYPE_CHECKING:
    from builder.parts.position import Shapes


STEM_STRIDE = 4  # of the backbone's first map: a convolution and a pooling of stride 2


def level_shapes(variant: RTDETRv2Config, height: int, width: int) -> Shapes:
    """Return (h, w) of each level for an input of `height` x `width` pixels, finest first; every step rounds up."""
    strides = [STEM_STRIDE * 2**i for i in variant.backbone.out_indices]
    while len(strides) < variant.num_levels:
        strides.append(2 * strides[-1])
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def check_limits(variant: RTDETRv2Config, height: int, width: int, tensorrt: bool = False) -> None:
    """Check that a variant's network can run on an input of `height` x `width` pixels, and in TensorRT if asked.

    Raises:
        VariantError: it cannot; names the setting, its value, what is possible and what to do.
    """
    shapes = level_shapes(variant, height, width)
    fused = shapes[: len(variant.backbone.out_indices)]
    for name, side, axis in (("height", height, 0), ("width", width, 1)):
        sides = [shape[axis] for shape in fused]
        if any(fine != 2 * coarse for fine, coarse in pairwise(sides)):
            stride = STEM_STRIDE * 2 ** variant.backbone.out_indices[-1]
            near = ", ".join(str(stride * each) for each in (side // stride, side // stride + 1) if each)
            raise VariantError(
                f"{name}={side} gives variant {variant.name!r} maps of {', '.join(map(str, sides))} cells, of which "
                f"each must be twice the next one; give a multiple of {stride}, such as {near}"
            )
    if variant.sampling == "discrete" and any(h > w for h, w in shapes):
        raise VariantError(
            f"height={height} and width={width}: discrete sampling of variant {variant.name!r} is not defined for "
            "inputs higher than wide; give a square size, as it was trained with"
        )
    check_transformer(variant, sum(h * w for h, w in shapes), height, width, tensorrt)
