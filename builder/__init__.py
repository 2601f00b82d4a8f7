"""Weights in, a deployable model repository out."""

from builder.checkpoint import CheckpointError, load_detector, random_detector
from builder.variants import VARIANTS, Variant, VariantError, from_mmdet_config, get_variant

__all__ = [
    "VARIANTS",
    "CheckpointError",
    "Variant",
    "VariantError",
    "from_mmdet_config",
    "get_variant",
    "load_detector",
    "random_detector",
]
