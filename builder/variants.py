"""The networks known by name; `from_mmdet_config` reads any other."""

from __future__ import annotations

from builder.co_dino.config import ResNetConfig, SwinConfig, Variant, VariantError
from builder.co_dino.mmdet_config import from_mmdet_config
from builder.co_dino.presets import PRESETS
from builder.demo import DEMO_NETWORK, DEMO_VARIANT

__all__ = ["VARIANTS", "ResNetConfig", "SwinConfig", "Variant", "VariantError", "from_mmdet_config", "get_variant"]

VARIANTS: dict[str, Variant] = {**PRESETS, DEMO_VARIANT: DEMO_NETWORK}


def get_variant(name: str) -> Variant:
    """Return the preset `name`; raises VariantError with the known names."""
    if name not in VARIANTS:
        raise VariantError(f"unknown variant {name!r}; known: {', '.join(VARIANTS)}")
    return VARIANTS[name]
