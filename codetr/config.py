"""The options --config and --execute-config: an mmdetection config in place of a variant's name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr.shown import say
from serving.errors import CodetrError

if TYPE_CHECKING:
    from builder.family import DetectorConfig

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Config of mmdetection, .py or .json, in place of a variant's name.")
]
ExecuteOption = Annotated[
    bool,
    typer.Option("--execute-config", help="Let mmengine execute a Python --config; only for files that you trust."),
]
_NO_CONFIG = "--execute-config is without effect here; add --config FILE, or leave it out"


def given_variant(name: str | None, config: Path | None, execute: bool, option: str = "a VARIANT") -> DetectorConfig:
    """Return the preset `name` or the network of `config`; raises CodetrError unless exactly one is given."""
    from builder.variants import get_variant

    if execute and config is None:
        raise CodetrError(_NO_CONFIG)
    if (name is None) == (config is None):
        raise CodetrError(f"give either {option} (`codetr variants` lists them) or --config FILE of your own network")
    return _read(config, execute) if config is not None else get_variant(str(name))


def read_variant(config: Path | None, execute: bool) -> DetectorConfig | None:
    """Return the network of `config`, or None without one; what was left out of it is said on standard error."""
    if config is None and execute:
        raise CodetrError(_NO_CONFIG)
    return None if config is None else _read(config, execute)


def _read(config: Path, execute: bool) -> DetectorConfig:
    from builder.reading.config_file import NOTES, read_config
    from builder.variants import from_mmdet_config

    settings = read_config(config, execute)
    variant = from_mmdet_config(settings, variant_name(config))
    for note in settings.get(NOTES, ()):
        say(f"note: {config}: {note}", err=True)
    return variant


def variant_name(config: Path) -> str:
    """Return a config's file name as a variant's name, which is part of folder names."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", config.stem).strip("_") or "custom"
