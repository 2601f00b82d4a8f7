"""The networks known by name; `from_mmdet_config` reads any other."""

from __future__ import annotations

from typing import Any

from builder.co_dino.config import ResNetConfig, SwinConfig, Variant
from builder.families import presets, read_variant
from builder.family import DetectorConfig, VariantError

__all__ = [
    "VARIANTS",
    "DetectorConfig",
    "ResNetConfig",
    "SwinConfig",
    "Variant",
    "VariantError",
    "from_mmdet_config",
    "get_variant",
]

VARIANTS: dict[str, DetectorConfig] = presets()
from_mmdet_config = read_variant


def get_variant(name: str) -> Any:
    """Return the preset `name`, also one that was added to `VARIANTS`; raises VariantError with the known names."""
    known = {**presets(), **VARIANTS}
    if name not in known:
        raise VariantError(f"unknown variant {name!r}; known: {', '.join(known)}")
    return known[name]
