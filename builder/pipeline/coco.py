"""COCO annotation files: read once, checked and renumbered, and their categories matched with a detector's classes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.family import NO_CLASS
from builder.pipeline.coco_entries import (
    Annotation,
    CocoCategory,
    CocoImage,
    read_annotations,
    read_categories,
    read_images,
)
from builder.pipeline.coco_json import read_json
from serving.errors import CodetrError

_LISTS = ("images", "annotations", "categories")
# Keys of one entry of files that are no annotation files, and what those are.
_OTHER_FILES = {
    "score": "a results file, which is what a detector found; expected the annotations that it is compared with",
    "shapes": "LabelMe's file of one picture; export COCO's JSON",
    "_via_settings": "VIA's project; export COCO's JSON",
    "featureMap": "Supervisely's; export COCO's JSON",
}


@dataclass(frozen=True)
class CocoFile:
    """What a COCO annotation file says of boxes, checked.

    Images, categories and annotations have numbers of ours, 1, 2 and so on, whatever ids the file gives them: COCO's
    evaluators take an annotation of id 0 for none, and one of two equal ids for the other. Numbers of images and
    categories ascend as their ids do; of ids that are text, as they stand in the file.
    """

    path: Path
    sha256: str  # of the file
    images: tuple[CocoImage, ...]  # in the file's order
    categories: tuple[CocoCategory, ...]  # in the order of their numbers
    annotations: tuple[Annotation, ...]
    notes: tuple[str, ...] = ()  # what was left out or made up, a line each

    def content(self) -> dict[str, Any]:
        """Return COCO's object for its evaluators, in numbers of ours."""
        return {
            "images": [
                {"id": image.number, "file_name": image.file_name, "width": image.width, "height": image.height}
                for image in self.images
            ],
            "categories": [{"id": category.number, "name": category.name} for category in self.categories],
            "annotations": [
                {
                    "id": number,
                    "image_id": each.image,
                    "category_id": each.category,
                    "bbox": list(each.box),
                    "area": each.area,
                    "iscrowd": int(each.is_crowd),
                }
                for number, each in enumerate(self.annotations, 1)
            ],
        }


def read_coco(path: Path) -> CocoFile:
    """Read a COCO annotation file; UTF-8 or UTF-16, with or without gzip.

    * Ids are whole numbers or text, in any order and with gaps; `1` and `"1"` are one id. Annotations need none.
    * Of an annotation only image, category, box, area and crowd are read. A missing area is that of the box.
    * Left out, with a note: annotations without a box, with one of no width or height, or of an image that the file
      does not list; equal entries of an image or a category; a category that nothing is annotated with and that is the
      supercategory of another, or shares its name.

    Raises:
        CodetrError: it is no COCO annotation file, or an entry is not what it should be; names entry, value,
            expectation and, where it is known, how many entries are so.
    """
    content, digest = read_json(path)
    notes: list[str] = []
    try:
        lists = _lists(content)
        images = read_images(lists["images"], notes)
        categories, numbers = read_categories(lists["categories"], lists["annotations"], notes)
        annotations = read_annotations(lists["annotations"], images, numbers, notes)
    except CodetrError as error:
        raise CodetrError(f"{path}: {error}") from None
    notes = [f"{path}: {note}" for note in notes]
    return CocoFile(path, digest, tuple(images.values()), tuple(categories), tuple(annotations), tuple(notes))


def _lists(content: Any) -> dict[str, list[Any]]:
    """Return the three lists of an annotation file, or say what it is instead."""
    entry = content[0] if isinstance(content, list) and content else content
    if isinstance(entry, dict) and not set(_LISTS) <= entry.keys():
        kind = next((kind for key, kind in _OTHER_FILES.items() if key in entry), None)
        if kind or set(entry) == {"score_threshold", "images"}:
            raise CodetrError(f"it is no COCO annotation file but {kind or _OTHER_FILES['score']}")
    if not isinstance(content, dict):
        raise CodetrError(
            f"it is no COCO annotation file: expected an object with {', '.join(_LISTS)}, got "
            f"{'a list' if isinstance(content, list) else type(content).__name__}"
        )
    missing = [key for key in _LISTS if key not in content]
    if missing:
        raise CodetrError(
            f"it is no COCO annotation file: it has no {' and no '.join(missing)}, only "
            f"{', '.join(list(map(str, content))[:6]) or 'nothing'}"
        )
    for key in _LISTS:
        if not isinstance(content[key], list):
            raise CodetrError(f"{key}: expected a list, got {type(content[key]).__name__}")
        for index, each in enumerate(content[key]):
            if not isinstance(each, dict):
                raise CodetrError(f"{key}[{index}]: expected an object, got {type(each).__name__}")
        if not content[key] and key != "annotations":
            raise CodetrError(f"{key}: the list is empty; expected at least one")
    return {key: content[key] for key in _LISTS}


@dataclass(frozen=True)
class Matched:
    """A detector's labels with the categories of a file."""

    categories: dict[int, int]  # numbers by label; labels that the file lacks have no entry
    notes: tuple[str, ...] = ()  # categories that are left out


def match_categories(coco: CocoFile, class_names: Sequence[str], remedy: str) -> Matched:
    """Return the category for each of a detector's labels.

    Classes are matched by name, which turns COCO's 80 labels into its ids of up to 90; a detector without names is
    taken to number the categories in their order. A label named `NO_CLASS` has no category. Categories that nothing is
    annotated with have no AP, so the detector need not know them.

    Args:
        coco: the file.
        class_names: of the detector, in label order.
        remedy: the message's last words.

    Raises:
        CodetrError: the detector does not know a category of an annotation, or knows none at all, or gives a name of
            the file to two labels.
    """
    if not class_names:
        return Matched({label: category.number for label, category in enumerate(coco.categories)})
    labels = {name: label for label, name in enumerate(class_names) if name != NO_CLASS}
    annotated = {annotation.category for annotation in coco.annotations}
    unknown = [category for category in coco.categories if category.name not in labels]
    wrong = [category for category in unknown if category.number in annotated or len(unknown) == len(coco.categories)]
    if wrong:
        raise CodetrError(
            f"the detector does not know {len(wrong)} of the {len(coco.categories)} categories of {coco.path}, among "
            f"them {wrong[0].name!r}{_alike(wrong[0].name, list(labels))}; its classes are "
            f"{', '.join(list(labels)[:5])}, ... ({remedy})"
        )
    known = {labels[category.name]: category for category in coco.categories if category.name in labels}
    twice = [each.name for each in known.values() if list(class_names).count(each.name) > 1]
    if twice:
        raise CodetrError(f"two classes of the detector are called {twice[0]!r}; expected one ({remedy})")
    notes = [
        f"{coco.path}: {len(unknown)} categories that nothing is annotated with are left out, since the detector does "
        f"not know them: {', '.join(repr(category.name) for category in unknown[:5])}"
        f"{', ...' if len(unknown) > 5 else ''}"
    ]
    return Matched({label: each.number for label, each in known.items()}, tuple(notes if unknown else ()))


def _alike(name: str, names: Sequence[str]) -> str:
    """Return a hint at the class that is nearly called so."""
    plain = {each.casefold().replace("_", " ").strip(): each for each in names}
    near = difflib.get_close_matches(name.casefold().replace("_", " ").strip(), plain, n=1, cutoff=0.85)
    return f" (not {plain[near[0]]!r})" if near else ""
