"""Weights in, a deployable model repository out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_OF_CHECKPOINT = ("CheckpointError", "load_detector", "random_detector")


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: `builder.pipeline.ap` works where PyTorch is not installed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "checkpoint" if name in _OF_CHECKPOINT else "variants"
    return getattr(importlib.import_module(f"builder.{module}"), name)
