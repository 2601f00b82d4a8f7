"""The generated images as a COCO data set."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from demo.shapes import CLASS_NAMES
from demo.shapes.draw import Sample, generate

JPEG_QUALITY = 95
ANNOTATIONS = "annotations.json"
_OWN_NAME = re.compile(r"[0-9]{6,}\.jpg")  # of what `_file_name` makes
DESCRIPTION = "generated shapes"  # by which the annotations of an earlier call are known again


def write_dataset(
    output: Path, images: int, seed: int, first: int = 0, progress: Callable[[Iterable[int]], Iterable[int]] = iter
) -> Path:
    """Write images `first` .. `first + images - 1` of data set `seed` as JPEG files with COCO annotations.

    The images of an earlier call that are there go first: of a larger set none stays beside the new annotations, and a
    call that is interrupted leaves no annotations of other images.

    Args:
        output: folder that receives `images/` and `annotations.json`.
        images: number of images.
        seed: as in `generate`.
        first: index of the first image.
        progress: wraps the iteration over indices, to show it.

    Returns:
        The path of the annotation file.

    Raises:
        FileExistsError: an image or annotations.json would be replaced that no earlier call wrote.
    """
    earlier = _check_output(output, seed, range(first, first + images))
    for name in earlier:
        (output / "images" / name).unlink(missing_ok=True)
    (output / ANNOTATIONS).unlink(missing_ok=True)
    (output / "images").mkdir(parents=True, exist_ok=True)
    coco = {"info": {"description": DESCRIPTION, "seed": seed, "first": first}, **coco_annotations([])}
    for index in progress(range(first, first + images)):
        sample = generate(seed, index)
        _append_to_coco(coco, sample, index)
        (output / "images" / coco["images"][-1]["file_name"]).write_bytes(encode_jpeg(sample.image))
    path = output / ANNOTATIONS
    aside = output / f".{ANNOTATIONS}.partial"
    aside.write_text(json.dumps(coco), encoding="utf-8")
    return aside.replace(path)


def _check_output(output: Path, seed: int, indices: Iterable[int]) -> set[str]:
    """Return the images of an earlier call; refuse a folder in which something would be replaced that is of none."""
    path = output / ANNOTATIONS
    if output.is_file():
        raise FileExistsError(f"output {output}: it is a file; expected a folder, name another")
    earlier = _own_files(path)
    if earlier is None:
        raise FileExistsError(
            f"{path} would be replaced, but it is no generated data set's; name another output folder"
        )
    for index in indices:
        image = output / "images" / _file_name(index)
        if image.name in earlier or not os.path.lexists(image):
            continue
        # A call that was interrupted left images without annotations: the same ones.
        if not image.is_file() or image.read_bytes() != encode_jpeg(generate(seed, index).image):
            raise FileExistsError(f"{image} would be replaced, but it is another image; name another output folder")
    return earlier


def _own_files(annotations: Path) -> set[str] | None:
    """Return the images that an earlier call wrote, by its annotations; None if they are somebody else's."""
    if not os.path.lexists(annotations):
        return set()
    try:
        content = json.loads(annotations.read_text(encoding="utf-8"))
        own = content["info"]["description"] == DESCRIPTION
        return {name for image in content["images"] if _OWN_NAME.fullmatch(name := image["file_name"])} if own else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file_name(index: int) -> str:
    return f"{index:06d}.jpg"


def coco_annotations(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the COCO annotations of the first images of a data set, as `write_dataset` numbers them."""
    coco: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASS_NAMES)],
    }
    for index, sample in enumerate(samples):
        _append_to_coco(coco, sample, index)
    return coco


def encode_jpeg(image: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """Encode an RGB image [H, W, 3] as JPEG."""
    encoded: NDArray[np.uint8] = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )[1]
    return encoded.tobytes()


def _append_to_coco(coco: dict[str, Any], sample: Sample, index: int) -> None:
    height, width = sample.image.shape[:2]
    image_id = index + 1
    coco["images"].append({"id": image_id, "file_name": _file_name(index), "height": height, "width": width})
    for (x1, y1, x2, y2), label, area in zip(
        sample.boxes.tolist(), sample.labels.tolist(), sample.areas.tolist(), strict=True
    ):
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "iscrowd": 0,
            }
        )
