"""How alike two sets of detections are, image by image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np

from builder.pipeline.overlap import iou
from codetr_client.detections import Detections
from codetr_client.drawing import draw, side_by_side
from codetr_client.outputs import is_own_picture, make_folder, plan_pictures, save_picture
from perf.accuracy.dataset import Dataset

# Detections below this score are no disagreement worth a picture; matches overlap at least this much.
SHOWN_SCORE, MATCH_IOU = 0.3, 0.5
_RANKED = re.compile(r"[0-9]{2}-.*")  # names of the pictures of `draw_worst`


def agreement(a: Detections, b: Detections) -> float:
    """Return how alike two detections of one image are: the mean IoU of their matches, 0 for what has none.

    Only scores from `SHOWN_SCORE` count; a match has the same label and an IoU from `MATCH_IOU`. Two empty images
    agree.
    """
    a, b = a.above(SHOWN_SCORE), b.above(SHOWN_SCORE)
    if not len(a) and not len(b):
        return 1.0
    overlaps = iou(a.boxes, b.boxes) * (a.labels[:, None] == b.labels[None])
    overlaps[overlaps < MATCH_IOU] = 0
    total = 0.0
    while overlaps.size and (best := float(overlaps.max())) > 0:
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        total += best
        overlaps[row] = overlaps[:, column] = 0
    return total / max(len(a), len(b))


def draw_worst(
    dataset: Dataset, a: Mapping[int, Detections], b: Mapping[int, Detections], output: Path, count: int = 8
) -> list[tuple[Path, float]]:
    """Draw the images on which `a` (left) and `b` (right) agree least; return the pictures with their agreement.

    Those of an earlier call, which may have been of fewer images, go.
    """
    make_folder(output)
    ranked = sorted((agreement(a[image.number], b[image.number]), image.number, image) for image in dataset.images)[
        :count
    ]
    stems = [f"{rank:02d}-{image.path.stem}" for rank, (_, _, image) in enumerate(ranked, 1)]
    paths = plan_pictures(output, stems, [image.path for image in dataset.images])
    _remove_earlier(output, {image.path.resolve() for image in dataset.images} | {path.resolve() for path in paths})
    for path, (_, _, image) in zip(paths, ranked, strict=True):
        left, right = (draw(image.path, found[image.number].above(SHOWN_SCORE)) for found in (a, b))
        save_picture(side_by_side(left, right), path)
    return [(path, value) for path, (value, _, _) in zip(paths, ranked, strict=True)]


def _remove_earlier(folder: Path, kept: Set[Path]) -> None:
    for path in folder.iterdir():
        if _RANKED.fullmatch(path.name) and path.resolve() not in kept and is_own_picture(path):
            path.unlink()
