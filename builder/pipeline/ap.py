"""COCO average precision of detections, for the verification of engines and for `codetr evaluate`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray


class Figures(NamedTuple):
    """COCO's figures, 0..1; -1 where the images hold no such object."""

    stats: NDArray[np.float64]  # [12] AP, AP50, AP75, AP of three sizes, AR of 1, 10 and 100, AR of three sizes
    precision: NDArray[np.float64]  # [10 IoUs, 101 recalls, classes], of 100 detections an image and every size


def evaluate(
    annotations: dict[str, Any],
    rows: list[dict[str, Any]],
    image_ids: Iterable[int],
    category_ids: Iterable[int],
) -> Figures:
    """Return COCO's figures of result records on some images and categories of COCO's object.

    Ids are whole numbers from 1: COCO's evaluators take an annotation of id 0 for none.
    """
    truth = COCO(annotations, print_function=_quiet)
    results = truth.loadRes(rows) if rows else COCO()
    evaluation = COCOeval_faster(truth, results, "bbox", print_function=_quiet)
    evaluation.params.imgIds, evaluation.params.catIds = list(image_ids), list(category_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return Figures(np.array(evaluation.stats[:12], float), evaluation.eval["precision"][:, :, :, 0, -1])


def _quiet(*_: object, **__: object) -> None:
    """Take the place of the library's prints."""
