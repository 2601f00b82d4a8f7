"""The published configs in tests/data/configs, and how tests change them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "configs"
SWIN_LSJ = "mmdetection-co_dino_5scale_swin_l_lsj_16xb1_1x_coco"
R50 = "mmdetection-co_dino_5scale_r50_8xb2_1x_coco"
R50_LSJ = "mmdetection-co_dino_5scale_r50_lsj_8xb2_1x_coco"
ORIGINAL_R50 = "sense_x-co_dino_5scale_r50_1x_coco"
ORIGINAL_LSJ = "sense_x-co_dino_5scale_lsj_r50_1x_coco"
ORIGINAL_SWIN = "sense_x-co_dino_5scale_swin_large_1x_coco"
ABSENT = object()


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["config"]


def changed(config: Any, path: str, value: Any) -> Any:
    """A copy of a config with another value at a path of keys and list indices; ABSENT removes it."""
    config = copy.deepcopy(config)
    *parents, key = [int(part) if part.isdigit() else part for part in path.split(".")]
    target = config
    for parent in parents:
        target = target.setdefault(parent, {}) if isinstance(target, dict) else target[parent]
    if value is ABSENT:
        del target[key]
    else:
        target[key] = value
    return config


def walk(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every path of a config with its value, dicts and lists before what they hold."""
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        here = f"{path}.{key}" if path else str(key)
        yield here, value
        yield from walk(value, here)
