"""A COCO annotation file and its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.pipeline.coco import IMAGE_KEYS, match_categories, read_coco
from serving.errors import CodetrError

# An image counts as portrait or landscape if its sides differ by more than this share.
SQUARE_TOLERANCE = 0.05


@dataclass(frozen=True)
class CocoImage:
    """One image of an annotation file."""

    id: int
    path: Path
    width: int
    height: int


@dataclass(frozen=True)
class Dataset:
    """A COCO annotation file: the images to detect on and the categories, in ascending order of their ids."""

    annotations: Path
    images: tuple[CocoImage, ...]
    category_ids: tuple[int, ...]
    category_names: tuple[str, ...]
    is_whole: bool = True  # else the first images of the file alone


def read_dataset(annotations: Path, images: Path, limit: int | None = None) -> Dataset:
    """Read a COCO annotation file whose images lie in the folder `images`; the first `limit` of them.

    Raises:
        CodetrError: the file is missing or no COCO annotation file, or images are missing.
    """
    _, listed, categories = read_coco(annotations, (*IMAGE_KEYS, "width", "height"))
    found = tuple(
        CocoImage(image["id"], images / image["file_name"], image["width"], image["height"]) for image in listed
    )
    is_whole = limit is None or limit >= len(found)
    found = found[:limit]
    missing = [image.path.name for image in found if not image.path.is_file()]
    if missing or not found:
        raise CodetrError(
            f"{len(missing)} of {len(found)} images are not in {images}: {', '.join(missing[:3])} ...; give the folder "
            "that the file names are relative to"
        )
    return Dataset(annotations, found, tuple(categories), tuple(categories.values()), is_whole)


def category_of_label(dataset: Dataset, class_names: Sequence[str]) -> dict[int, int]:
    """Return the data set's category id for each of the detector's labels.

    Classes are matched by name, which turns COCO's 80 labels into its ids of up to 90; a detector without names is
    taken to number the categories in ascending order of their ids. Labels the data set lacks have no entry.

    Raises:
        CodetrError: the data set has a category that the detector does not know.
    """
    categories = dict(zip(dataset.category_ids, dataset.category_names, strict=True))
    return match_categories(categories, class_names, dataset.annotations, "give the names it was trained with")


def by_orientation(dataset: Dataset) -> dict[str, list[CocoImage]]:
    """Return the data set's landscape, square and portrait images."""
    groups: dict[str, list[CocoImage]] = {"landscape": [], "square": [], "portrait": []}
    for image in dataset.images:
        ratio = image.width / image.height
        square = 1 / (1 + SQUARE_TOLERANCE) < ratio < 1 + SQUARE_TOLERANCE
        groups["square" if square else "landscape" if ratio > 1 else "portrait"].append(image)
    return {name: images for name, images in groups.items() if images}
