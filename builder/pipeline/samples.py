"""The images that an engine is verified on, and what is annotated on them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from builder.pipeline.coco import CocoFile, match_categories, read_coco
from builder.pipeline.coco_entries import CocoImage
from builder.pipeline.coco_pictures import compare_with_pictures, spellings
from demo.shapes import CLASS_NAMES
from demo.shapes.dataset import coco_annotations
from demo.shapes.draw import generate
from serving.decode import decode_image
from serving.errors import CodetrError, InvalidImageError

logger = logging.getLogger(__name__)

# The data set and number of generated images that engines are verified on when no other images are given.
SEED, IMAGES = 20, 8
PURPOSE = "to verify on"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ANNOTATIONS = "annotations.json"  # looked for in the folder of images and beside it


@dataclass(frozen=True)
class Truth:
    """COCO annotations of sample images, in pixels of the upright ones."""

    content: dict[str, Any]  # with ids of ours
    image_ids: Mapping[int, int]  # by the sample's index; images without an entry are not annotated
    category_ids: Mapping[int, int]  # by the detector's label


@dataclass(frozen=True)
class Samples:
    """Images to verify on."""

    images: Sequence[NDArray[np.uint8]]  # each [h, w, 3] RGB
    names: Sequence[str]
    truth: Truth | None = None


def sample_images(
    class_names: Sequence[str], folder: Path | None = None, annotations: Path | None = None, most: int | None = None
) -> Samples:
    """Return the images in `folder`, or generated shapes, with their annotations if there are any.

    Args:
        class_names: of the detector; generated shapes count as annotated if these are the shapes' names.
        folder: of images, or where `most` is given the file of one, whatever it is called; None for generated shapes.
        annotations: COCO annotation file of the folder's images; else an `annotations.json` in the folder or beside it
            is taken, if it lists any of them.
        most: so many generated shapes, or at most so many images of the folder, the first by name, without their
            annotations; None for `IMAGES` shapes, or all images with theirs.

    Raises:
        CodetrError: the folder holds none or unreadable ones, or the annotations are not of them or of other classes.
    """
    if folder is None:
        check_samples(folder, annotations)
        return drawn_samples(SEED, IMAGES if most is None else most, class_names)
    single = most is not None and folder.is_file()
    paths = [folder] if single else image_paths(folder, PURPOSE)[:most]
    images, names = read_images(paths), [path.name for path in paths]
    truth = None if most is not None else _find_truth(folder, names, class_names, annotations)
    return Samples(images, names, truth)


def check_samples(folder: Path | None, annotations: Path | None) -> None:
    """Check what can be known of sample images before a network is there: that they and their annotations are.

    Raises:
        CodetrError: there is no folder, it holds no images, or the annotations are no file or of no folder.
    """
    if folder is not None:
        image_paths(folder, PURPOSE)
    elif annotations is not None:
        raise CodetrError("annotations are given without the folder of their images; name that too")
    if annotations is not None and not annotations.is_file():
        raise CodetrError(f"annotations {annotations}: no file is there; name a COCO annotation file")


def image_paths(folder: Path, purpose: str) -> list[Path]:
    """Return the images in `folder`, by name.

    Raises:
        CodetrError: there is no such folder, or it holds none; says what they are for.
    """
    if folder.is_file():
        raise CodetrError(f"{folder} is a file; name a folder of images ({', '.join(IMAGE_SUFFIXES)}) {purpose}")
    if not folder.is_dir():
        raise CodetrError(f"there is no folder {folder} of images {purpose}; name one that is there")
    paths = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise CodetrError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}) {purpose}")
    return paths


def read_images(paths: Sequence[Path]) -> list[NDArray[np.uint8]]:
    """Return the images of files in one folder, each [h, w, 3] RGB and upright, as the server decodes them.

    Raises:
        CodetrError: some cannot be read, or the server would refuse them; names them.
    """
    images: list[NDArray[np.uint8]] = []
    unreadable: dict[Path, str] = {}
    for path in paths:
        try:
            images.append(decode_image(path.read_bytes()))
        except (OSError, InvalidImageError) as error:
            unreadable[path] = str(error.strerror if isinstance(error, OSError) else error)
    if unreadable:
        (first, reason), *others = unreadable.items()
        names = ", ".join(path.name for path, _ in others[:4]) + (", ..." if len(others) > 4 else "")
        raise CodetrError(
            f"{len(unreadable)} of {len(paths)} images in {first.parent} cannot be read: {first.name} ({reason})"
            f"{', ' if others else ''}{names}; take them out, or name another folder"
        )
    return images


def drawn_samples(seed: int, count: int, class_names: Sequence[str]) -> Samples:
    """Return the first `count` drawn images of a seed, annotated if the detector's classes are the shapes'."""
    samples = [generate(seed, index) for index in range(count)]
    content = coco_annotations(samples)
    truth = None
    if tuple(class_names) == CLASS_NAMES:
        ids = [image["id"] for image in content["images"]]
        truth = Truth(content, dict(enumerate(ids)), {label: label + 1 for label in range(len(CLASS_NAMES))})
    return Samples([sample.image for sample in samples], [f"shapes-{index}" for index in range(count)], truth)


def _find_truth(folder: Path, names: Sequence[str], class_names: Sequence[str], given: Path | None) -> Truth | None:
    beside = (folder / ANNOTATIONS, folder.absolute().parent / ANNOTATIONS)
    path = given or next((path for path in beside if path.is_file()), None)
    if path is None:
        return None
    try:
        truth = _truth(path, folder, names, class_names)
    except CodetrError as error:
        if given is not None:
            raise
        raise CodetrError(f"{error}; it was found beside the images, so move it away if it is not of them") from None
    if truth is None and given is not None:
        raise CodetrError(f"annotations {given}: the file lists none of the images in {folder}")
    return truth


def _truth(path: Path, folder: Path, names: Sequence[str], class_names: Sequence[str]) -> Truth | None:
    """Read the annotations of the files `names` in `folder`; None if there are none of them."""
    coco = read_coco(path)
    image_ids = _listed(coco, folder, names)
    if not image_ids:
        return None
    coco = compare_with_pictures(coco, {number: folder / names[index] for index, number in image_ids.items()})
    matched = match_categories(coco, class_names, "verify on other images, or give annotations of its classes")
    for note in (*coco.notes, *matched.notes):
        logger.warning("note: %s", note)  # on standard error, unless a program sets up logging
    return Truth(coco.content(), image_ids, matched.categories)


def _listed(coco: CocoFile, folder: Path, names: Sequence[str]) -> dict[int, int]:
    """Return the images of a file by the indices of `names`, the files in `folder`."""
    by_name: dict[str, dict[int, CocoImage]] = {}
    for image in coco.images:
        for spelling in spellings(image.file_name):
            by_name.setdefault(spelling.name, {})[image.number] = image
    found: dict[int, int] = {}
    for index, name in enumerate(names):
        images = list(by_name.get(name, {}).values())
        if len(images) > 1:
            images = [image for image in images if _ends_in(folder / name, image)] or images
        if len(images) > 1:
            raise CodetrError(
                f"{coco.path}: {images[0].file_name!r} and {images[1].file_name!r} may both be {folder / name}; "
                "expected file names that tell them apart by their folders"
            )
        if images:
            found[index] = images[0].number
    return found


def _ends_in(path: Path, image: CocoImage) -> bool:
    whole = path.absolute().parts
    return any(whole[-len(name.parts) :] == name.parts for name in spellings(image.file_name))
