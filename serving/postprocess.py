"""An engine's candidates to detections in the original image: threshold, NMS, scaling, a fixed number of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from serving.contract import (
    MAX_DETECTIONS,
    NMS_IOU_THRESHOLD,
    PADDING_BOX,
    PADDING_LABEL,
    PADDING_SCORE,
    SCORE_THRESHOLD,
    SOFT_NMS_MIN_SCORE,
)
from serving.errors import CodetrError

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class PostprocessSettings:
    """How candidates become detections; the defaults are mmdetection's `test_cfg[0]` of Co-DINO."""

    score_threshold: float = SCORE_THRESHOLD  # keep scores above it, before NMS; 0 keeps all
    nms: Literal["soft", "hard", "none"] = "soft"
    iou_threshold: float = NMS_IOU_THRESHOLD
    min_score: float = SOFT_NMS_MIN_SCORE  # soft NMS drops what it has brought below this
    class_agnostic: bool = False  # let boxes of different classes suppress each other
    max_detections: int = MAX_DETECTIONS  # rows returned

    def __post_init__(self) -> None:
        for key in ("score_threshold", "iou_threshold", "min_score"):
            value = getattr(self, key)
            if not 0 <= value <= 1:
                raise CodetrError(f"{key}: expected a number in 0..1, got {value}")
        if self.nms not in ("soft", "hard", "none"):
            raise CodetrError(f"nms: expected one of soft, hard, none, got {self.nms!r}")
        if self.max_detections < 1:
            raise CodetrError(f"max_detections: expected at least 1, got {self.max_detections}")


class Postprocessed(NamedTuple):
    """Detections of one image in descending score; rows past `num_detections` are 0, 0, -1."""

    boxes: Floats  # [max_detections, 4] x1 y1 x2 y2 in pixels of the original
    scores: Floats  # [max_detections]
    labels: Ints  # [max_detections]
    num_detections: int
    num_dropped: int  # candidates that were NaN or infinite


def postprocess(
    boxes: Floats, scores: Floats, labels: Ints, original_size: tuple[int, int], settings: PostprocessSettings
) -> Postprocessed:
    """Turn one image's candidates into its detections.

    As mmdetection does, NMS runs on boxes in pixels of the original image, and the result is in the order in which
    NMS picks: descending score, the earlier candidate first among equals.

    Args:
        boxes: float32 `[K, 4]`, x1 y1 x2 y2 in 0..1 of the valid image.
        scores: float32 `[K]` in 0..1.
        labels: int32 `[K]`.
        original_size: (height, width) of the upright original in pixels.
        settings: thresholds and the kind of NMS.
    """
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    keep = finite & (scores > settings.score_threshold) if settings.score_threshold > 0 else finite
    boxes, scores, labels = to_pixels(boxes[keep], original_size), scores[keep], labels[keep]
    picks, scores = pick(boxes, scores, labels, settings)
    picks, scores = picks[: settings.max_detections], scores[: settings.max_detections]
    return Postprocessed(
        boxes=_rows(boxes[picks], settings.max_detections, PADDING_BOX),
        scores=_rows(scores, settings.max_detections, PADDING_SCORE),
        labels=_rows(labels[picks].astype(np.int32), settings.max_detections, PADDING_LABEL),
        num_detections=len(picks),
        num_dropped=int(np.count_nonzero(~finite)),
    )


def to_pixels(boxes: Floats, original_size: tuple[int, int]) -> Floats:
    """Scale boxes `[K, 4]` of 0..1 to pixels of the (height, width) original and clip them to it."""
    height, width = original_size
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(boxes * limits, 0, limits).astype(np.float32, copy=False)


def pick(boxes: Floats, scores: Floats, labels: Ints, settings: PostprocessSettings) -> tuple[Indices, Floats]:
    """Run the settings' NMS.

    Args:
        boxes: float32 `[K, 4]`, x1 y1 x2 y2 in pixels.
        scores: float32 `[K]`.
        labels: int32 `[K]`.
        settings: the kind of NMS and its thresholds; the score threshold has been applied before.

    Returns:
        Indices of the boxes kept, in the order picked, and their scores (which soft NMS lowers), both `[N]`.

    Overlap is computed between boxes of one class. mmdetection shifts each class to an own region of the plane
    instead, and so rounds the coordinates of high labels: scores differ by less than 1e-5.
    """
    if settings.nms == "none" or len(scores) < 2:
        order = np.argsort(-scores, kind="stable")
        return order, scores[order]
    iou = pairwise_iou(boxes)
    if not settings.class_agnostic:
        iou[labels[:, None] != labels] = 0
    if settings.nms == "hard":
        return _hard_nms(iou, scores, settings.iou_threshold)
    return _soft_nms(iou, scores, settings)


def pairwise_iou(boxes: Floats) -> Floats:
    """Return intersection over union `[K, K]` of boxes `[K, 4]`; 0 where both are empty."""
    x1, y1, x2, y2 = boxes.T
    area = (x2 - x1) * (y2 - y1)
    inter = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)
    np.maximum(inter, 0, out=inter)
    inter_h = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)
    np.maximum(inter_h, 0, out=inter_h)
    inter *= inter_h
    union = area[:, None] + area
    union -= inter
    np.maximum(union, np.finfo(np.float32).tiny, out=union)
    inter /= union
    return inter


def _soft_nms(iou: Floats, scores: Floats, settings: PostprocessSettings) -> tuple[Indices, Floats]:
    """Linear soft NMS (Bodla et al. 2017; mmcv `soft_nms`): a pick multiplies its neighbours' scores by 1 - IoU.

    Everything but the first pick is dropped once it is below `min_score`, and at 0 in any case.
    """
    decay = np.where(iou >= settings.iou_threshold, 1 - iou, np.float32(1))
    remaining = scores.copy()
    picks: list[int] = []
    picked_scores: list[np.float32] = []
    floor = np.float32(0)
    for _ in range(len(scores)):
        best = int(remaining.argmax())
        score = remaining[best]
        if score <= 0 or score < floor:
            break
        picks.append(best)
        picked_scores.append(score)
        remaining *= decay[best]
        remaining[best] = -1
        floor = np.float32(settings.min_score)
    return np.array(picks, np.intp), np.array(picked_scores, np.float32)


def _hard_nms(iou: Floats, scores: Floats, threshold: float) -> tuple[Indices, Floats]:
    """Greedy NMS (mmcv `nms`): a pick removes the lower-scored whose IoU with it is above the threshold."""
    order = np.argsort(-scores, kind="stable")
    suppresses = (iou > threshold)[np.ix_(order, order)]
    kept = np.ones(len(order), bool)
    for rank in np.flatnonzero(np.triu(suppresses, 1).any(axis=1)):
        if kept[rank]:
            kept[rank + 1 :] &= ~suppresses[rank, rank + 1 :]
    picks = order[kept]
    return picks, scores[picks]


def _rows(values: npt.NDArray[Any], rows: int, padding: float) -> npt.NDArray[Any]:
    padded = np.full((rows, *values.shape[1:]), padding, values.dtype)
    padded[: len(values)] = values
    return padded
