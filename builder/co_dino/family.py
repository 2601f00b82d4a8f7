"""Co-DINO as the builder uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from builder.co_dino.config import ResNetConfig, SwinConfig, Variant
from builder.co_dino.levels import check_limits
from builder.co_dino.mmdet_config import from_mmdet_config
from builder.co_dino.presets import DEMO_NETWORK, DEMO_VARIANT, PRESETS
from builder.co_dino.weights import likely_cause, renamed
from builder.family import Family, tuples
from builder.parts.checkpoints import class_count
from serving.rules import Rules

if TYPE_CHECKING:
    from builder.co_dino.model import CoDINO


def _network(variant: Variant) -> CoDINO:
    from builder.co_dino.model import CoDINO

    return CoDINO(variant)


def _recognises(config: Mapping[str, Any]) -> bool:
    model = config.get("model", config)
    return isinstance(model, Mapping) and str(model.get("type", "")).rpartition(".")[2] == "CoDETR"


def _restore(network: Mapping[str, Any]) -> Variant:
    settings = tuples(network)
    backbone = SwinConfig if "window_size" in settings["backbone"] else ResNetConfig
    settings["backbone"] = backbone(**settings["backbone"])
    settings["rules"] = Rules.restore(settings)
    settings.pop("suppression", None)  # where older manifests have it
    return Variant(**settings)


CO_DINO = Family(
    name=Variant.family,
    presets={**PRESETS, DEMO_VARIANT: DEMO_NETWORK},
    network=_network,
    renamed=renamed,
    class_count=class_count,
    likely_cause=likely_cause,
    recognises=_recognises,
    read_config=from_mmdet_config,
    check_size=check_limits,
    restore=_restore,
    parts={
        "backbone": ("backbone.*",),
        "neck": ("neck.*",),
        "projections": ("encoder.layers.*.self_attn.value_proj", "encoder.layers.*.self_attn.output_proj"),
        "encoder-ffn": ("encoder.layers.*.ffn.*",),
    },
)
