"""COCO annotation files of the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def content(**change: Any) -> dict[str, Any]:
    """Two images, two categories, three annotations; `change` replaces whole lists."""
    return {
        "images": [
            {"id": 4, "file_name": "val/a.jpg", "width": 60, "height": 50},
            {"id": 2, "file_name": "b.jpg"},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 1, "name": "cat"}],
        "annotations": [annotation(), annotation(id=2, category_id=1), annotation(id=3, image_id=2, bbox=[0, 0, 9, 9])],
        **change,
    }


def annotation(**change: Any) -> dict[str, Any]:
    """A dog on the first image; `change` replaces keys."""
    whole = {"id": 1, "image_id": 4, "category_id": 9, "bbox": [1, 2, 30, 20], "area": 500, "iscrowd": 0}
    return {**whole, **change}


def without(entry: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The same without some keys."""
    return {key: value for key, value in entry.items() if key not in keys}


def write(path: Path, whole: Any) -> Path:
    """Write it as JSON, NaN and infinities as Python writes them."""
    path.write_text(json.dumps(whole), encoding="utf-8")
    return path
