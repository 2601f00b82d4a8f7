"""COCO average precision of detections, for the verification of engines and for `codetr evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from builder.family import NO_CLASS
from serving.errors import CodetrError


class Figures(NamedTuple):
    """COCO's figures, 0..1; -1 where the images hold no such object."""

    stats: NDArray[np.float64]  # [12] AP, AP50, AP75, AP of three sizes, AR of 1, 10 and 100, AR of three sizes
    precision: NDArray[np.float64]  # [10 IoUs, 101 recalls, classes], of 100 detections an image and every size


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


def coco_rows(
    image_id: int,
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.int32],
    category_ids: Mapping[int, int],
) -> list[dict[str, Any]]:
    """Return COCO result records of one image's detections whose label has a category.

    Args:
        image_id: of the annotations.
        boxes: [N, 4] x1 y1 x2 y2 in the image's pixels.
        scores: [N] in 0..1.
        labels: [N].
        category_ids: by label.
    """
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for (x1, y1, x2, y2), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
        if label in category_ids
    ]


def evaluate(
    annotations: Path | dict[str, Any],
    rows: list[dict[str, Any]],
    image_ids: Iterable[int],
    category_ids: Iterable[int],
) -> Figures:
    """Return COCO's figures of result records on some images and categories of an annotation file or its content."""
    truth = COCO(annotations if isinstance(annotations, dict) else str(annotations), print_function=_quiet)
    results = truth.loadRes(rows) if rows else COCO()
    evaluation = COCOeval_faster(truth, results, "bbox", print_function=_quiet)
    evaluation.params.imgIds, evaluation.params.catIds = list(image_ids), list(category_ids)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return Figures(np.array(evaluation.stats[:12], float), evaluation.eval["precision"][:, :, :, 0, -1])


def _quiet(*_: object, **__: object) -> None:
    """Take the place of the library's prints."""
