"""The class names that a config states, in label order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from builder.co_dino.config import VariantError
from builder.reading.settings import Config, short


def class_names(config: Config) -> tuple[str, ...] | None:
    """Return the class names of `metainfo`, of the data sets' `metainfo` or of their `classes`; None if there are none.

    Raises:
        VariantError: something else than a list of names, or places that disagree.
    """
    found = [(place, _names(place, value)) for place, value in _places(config)]
    for place, names in found[1:]:
        if names != found[0][1]:
            raise VariantError(
                f"{found[0][0]} and {place} state different class names, {short(found[0][1])} and {short(names)}; "
                "expected the same names in the order of the checkpoint's labels"
            )
    if not found and config.get("classes") is not None:  # a variable of the file, which nothing refers to
        return _names("classes", config["classes"])
    return found[0][1] if found else None


def _places(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield every path that states class names, with what it says."""
    yield from _of_metainfo("metainfo", config.get("metainfo"))
    for split in ("train", "test", "val"):
        dataloader = config.get(f"{split}_dataloader")
        if isinstance(dataloader, dict):
            yield from _of_dataset(f"{split}_dataloader.dataset", dataloader.get("dataset"))
    data = config.get("data")
    if isinstance(data, dict):
        for split in ("train", "test", "val"):
            yield from _of_dataset(f"data.{split}", data.get(split))


def _of_dataset(path: str, dataset: Any) -> Iterator[tuple[str, Any]]:
    """Yield those of a data set and of the data sets it wraps."""
    if isinstance(dataset, tuple):
        for index, each in enumerate(dataset):
            yield from _of_dataset(f"{path}[{index}]", each)
    elif isinstance(dataset, dict):
        yield from _of_metainfo(f"{path}.metainfo", dataset.get("metainfo"))
        yield from _of_metainfo(path, dataset)
        for key in ("dataset", "datasets"):
            yield from _of_dataset(f"{path}.{key}", dataset.get(key))


def _of_metainfo(path: str, metainfo: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(metainfo, dict):
        for key in ("classes", "CLASSES"):
            if metainfo.get(key) is not None:
                yield f"{path}.{key}", metainfo[key]


def _names(path: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple) or not value or not all(isinstance(name, str) and name for name in value):
        raise VariantError(
            f"{path}={short(value)} is no list of class names; expected names in the order of the labels, in quotes "
            "and with a comma between them"
        )
    return value
