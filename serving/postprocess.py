"""An engine's candidates to detections in the original image: threshold, NMS, scaling, a fixed number of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

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
from serving.parameters import UnknownParameters, check_way
from serving.rules import Suppression, SuppressionKind

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class PostprocessSettings:
    """How candidates become detections; the defaults are mmdetection's `test_cfg[0]` of Co-DINO."""

    score_threshold: float = SCORE_THRESHOLD  # keep scores above it, before NMS; 0 keeps all
    nms: SuppressionKind = "soft"
    iou_threshold: float = NMS_IOU_THRESHOLD
    min_score: float = SOFT_NMS_MIN_SCORE  # soft NMS drops what it has brought below this
    class_agnostic: bool = False  # let boxes of different classes suppress each other
    clip: bool = True  # cut boxes at the image's border
    max_detections: int = MAX_DETECTIONS  # rows returned
    unknown_parameters: UnknownParameters = "refuse"  # of a request

    @classmethod
    def of(cls, rule: Suppression, max_detections: int) -> PostprocessSettings:
        """Return the settings that follow a variant's rule."""
        return cls(
            rule.score_threshold,
            rule.kind,
            rule.iou_threshold,
            rule.min_score,
            rule.class_agnostic,
            rule.clip,
            max_detections,
        )

    @property
    def suppression(self) -> Suppression:
        """The rule that these settings follow."""
        return Suppression(
            self.nms, self.iou_threshold, self.min_score, self.score_threshold, self.class_agnostic, self.clip
        )

    def __post_init__(self) -> None:
        _ = self.suppression  # checks it
        check_way(self.unknown_parameters)
        if self.max_detections < 1:
            raise CodetrError(f"max_detections: expected at least 1, got {self.max_detections}")


class Postprocessed(NamedTuple):
    """Detections of one image in descending score; rows past `num_detections` are 0, 0, -1."""

    boxes: Floats  # [max_detections, 4] x1 y1 x2 y2 in pixels of the original
    scores: Floats  # [max_detections]
    labels: Ints  # [max_detections]
    num_detections: int
    num_dropped: int  # candidates that were NaN or infinite
    num_candidates: int  # that went into suppression


def postprocess(
    boxes: Floats,
    scores: Floats,
    labels: Ints,
    original_size: tuple[int, int],
    settings: PostprocessSettings,
    lowest_score: float | None = None,
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
        lowest_score: that a request wants to see, in place of the setting `score_threshold`. The setting is
            mmdetection's: candidates above it go into NMS. This one holds for the answer: scores of at least it are
            kept, and those that soft NMS has brought below it are not. Both are rounded to float32, as scores are.
    """
    finite = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    keep = finite & _are_candidates(scores, settings, lowest_score)
    boxes, scores, labels = to_pixels(boxes[keep], original_size, settings.clip), scores[keep], labels[keep]
    picks, scores = pick(boxes, scores, labels, settings)
    if lowest_score is not None:
        picks, scores = picks[scores >= np.float32(lowest_score)], scores[scores >= np.float32(lowest_score)]
    picks, scores = picks[: settings.max_detections], scores[: settings.max_detections]
    return Postprocessed(
        boxes=_rows(boxes[picks], settings.max_detections, PADDING_BOX),
        scores=_rows(scores, settings.max_detections, PADDING_SCORE),
        labels=_rows(labels[picks].astype(np.int32), settings.max_detections, PADDING_LABEL),
        num_detections=len(picks),
        num_dropped=int(np.count_nonzero(~finite)),
        num_candidates=int(np.count_nonzero(keep)),
    )


def _are_candidates(scores: Floats, settings: PostprocessSettings, lowest_score: float | None) -> npt.NDArray[np.bool_]:
    if lowest_score is not None:
        return scores >= np.float32(lowest_score)  # a lower score changes no higher one
    return scores > np.float32(settings.score_threshold) if settings.score_threshold > 0 else np.ones(len(scores), bool)


def to_pixels(boxes: Floats, original_size: tuple[int, int], clip: bool = True) -> Floats:
    """Scale boxes `[K, 4]` of 0..1 to pixels of the (height, width) original, and clip them to it or not."""
    height, width = original_size
    limits = np.array([width, height, width, height], np.float32)
    scaled = boxes * limits
    return (np.clip(scaled, 0, limits) if clip else scaled).astype(np.float32, copy=False)


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
    if len(scores) == 0:
        return np.empty(0, np.intp), scores
    final = scores if settings.nms == "none" else _suppress(boxes, scores, labels, settings)
    kept = final >= settings.min_score if settings.nms == "soft" else final >= 0
    kept[scores.argmax()] = True  # nothing lowers the first pick, and soft NMS keeps it whatever its score
    order = np.argsort(-final, kind="stable")
    order = order[kept[order]]
    return order, final[order]


def _suppress(boxes: Floats, scores: Floats, labels: Ints, settings: PostprocessSettings) -> Floats:
    """Return the scores at which boxes are picked, or -1 for those that never are.

    Linear soft NMS (Bodla et al. 2017; mmcv `soft_nms`): the highest remaining score is picked and multiplies its
    neighbours' by 1 - IoU. Hard NMS (mmcv `nms`) is the same with 0 in place of 1 - IoU. Boxes without neighbours keep
    their scores, so only the others take part.
    """
    first, second = _perhaps_near(boxes, None if settings.class_agnostic else labels, settings.iou_threshold)
    if len(first) > len(boxes) ** 2 / 8:  # a crowd, of which the whole matrix is less work
        everyone = np.arange(len(boxes))
        weights = _weights(boxes, everyone[:, None], everyone[None], settings)
        if not settings.class_agnostic:
            weights[labels[:, None] != labels[None]] = 1
        np.fill_diagonal(weights, 1)
        crowded = np.flatnonzero((weights < 1).any(axis=1))
        weights = weights[np.ix_(crowded, crowded)]
    else:
        factors = _weights(boxes, first, second, settings)
        near = factors < 1
        first, second, factors = first[near], second[near], factors[near]
        crowded = np.unique(np.concatenate([first, second]))
        rows, columns = np.searchsorted(crowded, first), np.searchsorted(crowded, second)
        weights = np.ones((len(crowded), len(crowded)), np.float32)
        weights[rows, columns] = weights[columns, rows] = factors
    final = scores.copy()
    final[crowded] = _pick_in_turn(scores[crowded], weights)
    best = scores.argmax()
    final[best] = scores[best]
    return final


def _pick_in_turn(scores: Floats, weights: Floats) -> Floats:
    """Return the scores at which boxes are picked, or -1; a pick multiplies the others' scores by its row `[K, K]`."""
    final = np.full(len(scores), -1, np.float32)
    remaining = scores.copy()
    rows = list(weights)
    picks: list[int] = []
    picked_scores: list[float] = []
    for _ in rows:
        best = int(remaining.argmax())
        score = remaining.item(best)
        if score <= 0:
            break
        picks.append(best)
        picked_scores.append(score)
        np.multiply(remaining, rows[best], out=remaining)
        remaining[best] = 0  # and not less: negative scores would dwindle to denormal numbers, which are slow
    final[picks] = picked_scores
    return final


def _weights(boxes: Floats, first: Indices, second: Indices, settings: PostprocessSettings) -> Floats:
    """Return what a box multiplies another's score by, 1 for those that are no neighbours, of pairs of any shape."""
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.T)
    area = (x2 - x1) * (y2 - y1)
    iou = _overlap(x1, x2, first, second)
    iou *= _overlap(y1, y2, first, second)
    union = area[first] + area[second]
    union -= iou
    iou /= np.maximum(union, np.finfo(np.float32).tiny, out=union)
    near = iou > settings.iou_threshold if settings.nms == "hard" else iou >= np.float32(settings.iou_threshold)
    return np.where(near, 0 if settings.nms == "hard" else 1 - iou, np.float32(1))


def _perhaps_near(boxes: Floats, labels: Ints | None, iou_threshold: float) -> tuple[Indices, Indices]:
    """Return the pairs of boxes, of one label if there are labels, that may reach an IoU of the threshold, both `[P]`.

    An IoU of t takes an overlap of t times each box's width, so the box further right begins in the first 1 - t of the
    other. Of 300 candidates few pairs are left, where the whole matrix would be most of the work.
    """
    x1 = boxes[:, 0].astype(np.float64)
    # A little more, for what float32 rounds; and at a threshold of 0 boxes count that do not even touch.
    reach = (boxes[:, 2] - x1) * (1.001 - iou_threshold) + 1e-3 if iou_threshold > 0 else np.full(len(x1), np.inf)
    if labels is not None:  # each label has a region of its own, which none of its boxes reaches beyond
        region, number = x1.max() - x1.min() + 1, np.unique(labels, return_inverse=True)[1]
        x1 = x1 - x1.min() + number * region
        reach = np.minimum(reach, (number + 1) * region - x1 - 0.5)
    order = np.argsort(x1, kind="stable")
    x1, reach = x1[order], reach[order]
    begin = np.arange(1, len(x1) + 1)
    count = np.maximum(np.searchsorted(x1, x1 + reach, side="right") - begin, 0)
    left = np.repeat(begin - 1, count)
    offset = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
    return order[left], order[left + 1 + offset]


def _overlap(low: Floats, high: Floats, first: Indices, second: Indices) -> Floats:
    """Return the length that intervals share, 0 if none, of pairs of any shape."""
    shared = np.minimum(high[first], high[second])
    shared -= np.maximum(low[first], low[second])
    return np.maximum(shared, 0, out=shared)


def _rows(values: npt.NDArray[Any], rows: int, padding: float) -> npt.NDArray[Any]:
    padded = np.full((rows, *values.shape[1:]), padding, values.dtype)
    padded[: len(values)] = values
    return padded
