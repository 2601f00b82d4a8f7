"""The networks known by name; `from_mmdet_config` reads any other."""

from __future__ import annotations

from builder.co_dino.config import ResNetConfig, SwinConfig, Variant
from builder.families import get_variant, presets, read_variant
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
