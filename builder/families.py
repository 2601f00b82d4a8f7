"""The families of detectors: the only place that names one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.co_dino.family import CO_DINO
from builder.detr.family import DETR
from builder.family import DetectorConfig, Family
from builder.rtdetrv2.family import RTDETRV2

FAMILIES: dict[str, Family] = {
    "co_dino": CO_DINO,
    "detr": DETR,
    "rtdetrv2": RTDETRV2,
}


def family_of(variant: DetectorConfig) -> Family:
    """Return the family that a configuration belongs to."""
    return FAMILIES[variant.family]


def presets() -> dict[str, DetectorConfig]:
    """Return the networks known by name, of all families."""
    return {name: preset for family in FAMILIES.values() for name, preset in family.presets.items()}


def read_variant(config: Mapping[str, Any], name: str = "custom") -> Any:
    """Return the network that a training program's config describes, by the reader of the family that it is of.

    Raises:
        VariantError: a setting is missing or is one that the network does not implement; a config that no family
            recognises is read as a Co-DINO's, whose reader says what is missing.
    """
    known = FAMILIES.values() if isinstance(config, Mapping) else ()
    return next((each for each in known if each.recognises(config)), CO_DINO).read_config(config, name)


def restore_variant(network: Mapping[str, Any]) -> DetectorConfig:
    """Return the configuration that a manifest holds; raises KeyError or TypeError where it is none."""
    settings = dict(network)
    return FAMILIES[settings.pop("family", CO_DINO.name)].restore(settings)  # of before there were families: Co-DINO
