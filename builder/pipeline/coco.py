"""COCO annotation files: read, and their categories matched with a detector's classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from builder.family import NO_CLASS
from serving.errors import CodetrError

IMAGE_KEYS = ("id", "file_name")  # of an image; those who need more ask for it


class CocoFile(NamedTuple):
    """What a COCO annotation file holds."""

    content: dict[str, Any]  # all of it
    images: tuple[dict[str, Any], ...]  # the keys asked for; `file_name` is a Path
    categories: dict[int, str]  # names by id, ids ascending


def read_coco(path: Path, image_keys: Sequence[str] = IMAGE_KEYS) -> CocoFile:
    """Read a COCO annotation file.

    Args:
        path: of the file.
        image_keys: what each of its images must say.

    Raises:
        CodetrError: the file is missing or no COCO annotation file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = tuple(
            {**{key: image[key] for key in image_keys}, "file_name": Path(image["file_name"])}
            for image in content["images"]
        )
        categories = dict(sorted((category["id"], category["name"]) for category in content["categories"]))
        len(content["annotations"])
    except OSError as error:
        raise CodetrError(f"annotations {path}: {error.strerror}; name a COCO annotation file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CodetrError(f"{path} is no COCO annotation file: {type(error).__name__} {error}") from error
    return CocoFile(content, images, categories)


def match_categories(
    categories: Mapping[int, str], class_names: Sequence[str], annotations: Path, remedy: str
) -> dict[int, int]:
    """Return the category id for each of a detector's labels; labels that the annotations lack have no entry.

    Classes are matched by name, which turns COCO's 80 labels into its ids of up to 90; a detector without names is
    taken to number the categories in ascending order of their ids. A label named `NO_CLASS` has no category.

    Args:
        categories: names by id.
        class_names: of the detector, in label order.
        annotations: where the categories stand, for the message.
        remedy: the message's last words.

    Raises:
        CodetrError: there is a category that the detector does not know.
    """
    ids = sorted(categories)
    if not class_names:
        return dict(enumerate(ids))
    labels = {name: label for label, name in enumerate(class_names) if name != NO_CLASS}
    unknown = [categories[id_] for id_ in ids if categories[id_] not in labels]
    if unknown:
        raise CodetrError(
            f"the detector does not know {len(unknown)} of the {len(ids)} categories of {annotations}, among them "
            f"{unknown[0]!r}; its classes are {', '.join(list(labels)[:5])}, ... ({remedy})"
        )
    return {labels[categories[id_]]: id_ for id_ in ids}
