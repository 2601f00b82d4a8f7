"""RT-DETRv2 as the builder uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from builder.family import Family, tuples
from builder.parts.checkpoints import class_count
from builder.rtdetrv2.config import HybridEncoderConfig, PResNetConfig, RTDETRv2Config
from builder.rtdetrv2.config_reader import read_config, recognises
from builder.rtdetrv2.levels import check_limits
from builder.rtdetrv2.presets import DEMO_NETWORK, DEMO_VARIANT, PRESETS
from builder.rtdetrv2.weights import likely_cause, renamed
from serving.rules import Rules

if TYPE_CHECKING:
    from builder.rtdetrv2.model import RTDETRv2


def _network(variant: RTDETRv2Config) -> RTDETRv2:
    from builder.rtdetrv2.model import RTDETRv2

    return RTDETRv2(variant)


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
    renamed=renamed,
    class_count=class_count,
    likely_cause=likely_cause,
    recognises=recognises,
    read_config=read_config,
    check_size=check_limits,
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
