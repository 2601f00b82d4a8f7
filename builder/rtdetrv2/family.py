"""RT-DETRv2 as the builder uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from builder.family import Family, tuples
from builder.rtdetrv2.config import HybridEncoderConfig, PResNetConfig, RTDETRv2Config
from builder.rtdetrv2.config_reader import read_config, recognises
from builder.rtdetrv2.presets import DEMO_NETWORK, DEMO_VARIANT, PRESETS
from serving.rules import Rules

if TYPE_CHECKING:
    from torch import Tensor

    from builder.rtdetrv2.model import RTDETRv2


def _network(variant: RTDETRv2Config) -> RTDETRv2:
    from builder.rtdetrv2.model import RTDETRv2

    return RTDETRv2(variant)


def _renamed(tensors: Mapping[str, Tensor], variant: RTDETRv2Config) -> dict[str, Tensor]:
    from builder.rtdetrv2.weights import renamed

    return renamed(tensors, variant)


def _class_count(state: Mapping[str, Tensor]) -> int | None:
    from builder.parts.checkpoints import class_count

    return class_count(state)


def _likely_cause(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], variant: RTDETRv2Config) -> str | None:
    from builder.rtdetrv2.weights import likely_cause

    return likely_cause(tensors, state, variant)


def _check_size(variant: RTDETRv2Config, height: int, width: int, tensorrt: bool) -> None:
    from builder.rtdetrv2.levels import check_limits

    check_limits(variant, height, width, tensorrt)


def _restore(network: Mapping[str, Any]) -> RTDETRv2Config:
    settings = tuples(network)
    settings["backbone"] = PResNetConfig(**settings["backbone"])
    settings["encoder"] = HybridEncoderConfig(**settings["encoder"])
    settings["rules"] = Rules.restore(settings)
    return RTDETRv2Config(**settings)


RTDETRV2 = Family(
    name=RTDETRv2Config.family,
    presets={**PRESETS, DEMO_VARIANT: DEMO_NETWORK},
    network=_network,
    renamed=_renamed,
    class_count=_class_count,
    likely_cause=_likely_cause,
    recognises=recognises,
    read_config=read_config,
    check_size=_check_size,
    restore=_restore,
    parts={
        "backbone": ("backbone.*",),
        "neck": (
            "encoder.lateral_convs.*",
            "encoder.fpn_blocks.*",
            "encoder.downsample_convs.*",
            "encoder.pan_blocks.*",
        ),
        "projections": ("encoder.input_proj.*", "encoder.attention.*.self_attn.out_proj", "input_proj.*"),
        "encoder-ffn": ("encoder.attention.*.ffn.*",),
    },
)
