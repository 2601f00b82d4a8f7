"""A COCO annotation file and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from builder.pipeline.coco import CocoFile, Matched, match_categories, read_coco
from builder.pipeline.coco_entries import Id, in_words
from builder.pipeline.coco_pictures import compare_with_pictures, find_pictures
from serving.errors import CodetrError

# An image counts as portrait or landscape if its sides differ by more than this share.
SQUARE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Picture:
    """One image of an annotation file, with its file."""

    number: int  # ours, from 1
    id: Id  # the file's own
    path: Path
    width: int  # of the upright picture, in pixels
    height: int


@dataclass(frozen=True)
class Dataset:
    """A COCO annotation file, in pixels of the upright pictures, and the images of it to detect on."""

    coco: CocoFile
    images: tuple[Picture, ...]
    is_whole: bool = True  # else some images of the file alone

    @property
    def annotations(self) -> Path:
        """The file."""
        return self.coco.path

    @property
    def category_names(self) -> tuple[str, ...]:
        """The names of the categories, in their order."""
        return tuple(category.name for category in self.coco.categories)

    @cached_property
    def content(self) -> dict[str, Any]:
        """COCO's object, in numbers of ours."""
        return self.coco.content()


def read_dataset(annotations: Path, images: Path, limit: int | None = None, skip_missing: bool = False) -> Dataset:
    """Read a COCO annotation file and the headers of its pictures, which lie in the folder `images`.

    Args:
        annotations: the file.
        images: the folder that its file names are relative to.
        limit: only so many images, the first.
        skip_missing: leave out images whose pictures are not there, with a note.

    Raises:
        CodetrError: the file is missing or no COCO annotation file, pictures are missing, or they are not those that
            were annotated.
    """
    coco = read_coco(annotations)
    listed = coco.images if skip_missing else coco.images[:limit]
    paths = find_pictures(images, listed)
    missing = [image.file_name for image in listed if image.number not in paths]
    if missing and (not skip_missing or not paths):
        raise CodetrError(
            f"{len(missing)} of {len(listed)} images are not in {images}: {in_words(missing)}; give the folder "
            "that the file names are relative to, or leave out what is missing (skip_missing)"
        )
    chosen = [image.number for image in listed if image.number in paths][:limit]
    coco = compare_with_pictures(coco, {number: paths[number] for number in chosen})
    if missing:
        note = f"{len(missing)} of {len(listed)} images are not in {images} and left out: {in_words(missing)}"
        coco = replace(coco, notes=(*coco.notes, f"{annotations}: {note}"))
    if all(annotation.is_crowd for annotation in coco.annotations):
        what = "nothing is annotated but crowds" if coco.annotations else "nothing is annotated"
        coco = replace(coco, notes=(*coco.notes, f"{annotations}: {what}, so there is no AP"))
    wanted = set(chosen)
    found = tuple(
        Picture(image.number, image.id, paths[image.number], image.width or 0, image.height or 0)
        for image in coco.images
        if image.number in wanted
    )
    return Dataset(coco, found, len(found) == len(coco.images))


def category_of_label(dataset: Dataset, class_names: Sequence[str]) -> Matched:
    """Return the data set's category for each of the detector's labels, by our numbers.

    Raises:
        CodetrError: as `match_categories`.
    """
    return match_categories(dataset.coco, class_names, "give the names it was trained with")


def by_orientation(dataset: Dataset) -> dict[str, list[Picture]]:
    """Return the data set's landscape, square and portrait images."""
    groups: dict[str, list[Picture]] = {"landscape": [], "square": [], "portrait": []}
    for image in dataset.images:
        ratio = image.width / image.height
        square = 1 / (1 + SQUARE_TOLERANCE) < ratio < 1 + SQUARE_TOLERANCE
        groups["square" if square else "landscape" if ratio > 1 else "portrait"].append(image)
    return {name: images for name, images in groups.items() if images}
