"""DETR as the builder uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from builder.detr.config import PRESETS, DetrConfig
from builder.detr.reader import read_config, recognises
from builder.detr.weights import class_count, contradiction, likely_cause, renamed
from builder.family import Family, tuples
from builder.parts.resnet_config import ResNetConfig
from serving.rules import Rules

if TYPE_CHECKING:
    from builder.detr.model import Detr


def _network(variant: DetrConfig) -> Detr:
    from builder.detr.model import Detr

    return Detr(variant)


def _check_size(variant: DetrConfig, height: int, width: int, tensorrt: bool) -> None:
    """Any size is possible."""


def _warnings(variant: DetrConfig, height: int, width: int) -> list[str]:
    if not variant.backbone.dilated:
        return []
    # Source: issues 217 and 239 of facebookresearch/detr.
    return [
        f"{variant.name} is a DC5 model, trained without padding: images that do not fill {height}x{width} (height x "
        "width) lose about 10 AP by its authors' account; choose the size of your images, or a model without DC5"
    ]


def _restore(network: Mapping[str, Any]) -> DetrConfig:
    settings = tuples(network)
    settings["backbone"] = ResNetConfig(**settings["backbone"])
    settings["rules"] = Rules.restore(settings)
    return DetrConfig(**settings)


DETR = Family(
    name=DetrConfig.family,
    presets=PRESETS,
    network=_network,
    renamed=renamed,
    class_count=class_count,
    likely_cause=likely_cause,
    recognises=recognises,
    read_config=read_config,
    check_size=_check_size,
    restore=_restore,
    contradiction=contradiction,
    warnings=_warnings,
    parts={
        "backbone": ("backbone.*",),
        "projections": ("input_proj", "encoder.layers.*.self_attn.out_proj"),
        "encoder-ffn": ("encoder.layers.*.ffn.*",),
    },
)
