"""An engine's candidates to detections in the original image: threshold, NMS, scaling, a fixed number of rows."""

from __future__ import annotations

from collections.abc import Callable
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

_TINY = np.finfo(np.float32).tiny
_BLOCK_ROWS = 64  # of a crowd's matrix: small enough for a core's cache, and often some are never needed
_FEW_LABELS = 1000


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
    num_given = len(scores)
    finite = _are_finite(boxes, scores)
    if finite is not None:
        boxes, scores, labels = boxes[finite], scores[finite], labels[finite]
    num_dropped = num_given - len(scores)
    keep = _are_candidates(scores, settings, lowest_score)
    if keep is not None:
        boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    num_candidates = len(scores)
    boxes = to_pixels(boxes, original_size, settings.clip)
    picks, scores = pick(boxes, scores, labels, settings)
    if lowest_score is not None:
        picks, scores = picks[scores >= np.float32(lowest_score)], scores[scores >= np.float32(lowest_score)]
    picks, scores = picks[: settings.max_detections], scores[: settings.max_detections]
    return Postprocessed(
        boxes=_rows(boxes[picks], settings.max_detections, PADDING_BOX),
        scores=_rows(scores, settings.max_detections, PADDING_SCORE),
        labels=_rows(labels[picks].astype(np.int32), settings.max_detections, PADDING_LABEL),
        num_detections=len(picks),
        num_dropped=num_dropped,
        num_candidates=num_candidates,
    )


def _are_finite(boxes: Floats, scores: Floats) -> npt.NDArray[np.bool_] | None:
    """Return which candidates have no NaN and no infinity, or None if all of them."""
    if np.isfinite(boxes).all() and np.isfinite(scores).all():
        return None
    finite: npt.NDArray[np.bool_] = np.isfinite(boxes).all(axis=1) & np.isfinite(scores)
    return finite


def _are_candidates(
    scores: Floats, settings: PostprocessSettings, lowest_score: float | None
) -> npt.NDArray[np.bool_] | None:
    """Return which scores go into suppression, or None if all of them."""
    if lowest_score is not None:
        return scores >= np.float32(lowest_score)  # a lower score changes no higher one
    return scores > np.float32(settings.score_threshold) if settings.score_threshold > 0 else None


def to_pixels(boxes: Floats, original_size: tuple[int, int], clip: bool = True) -> Floats:
    """Scale boxes `[K, 4]` of 0..1 to pixels of the (height, width) original, and clip them to it or not."""
    height, width = original_size
    limits = np.array([width, height, width, height], np.float32)
    scaled = (boxes * limits).astype(np.float32, copy=False)
    if clip:  # `np.clip` is several times slower
        np.maximum(scaled, 0, out=scaled)
        scaled += 0  # -0 is 0
        np.minimum(scaled, limits, out=scaled)
    return scaled


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
    """Return the scores at which boxes are picked; those that never are get less than is kept.

    Linear soft NMS (Bodla et al. 2017; mmcv `soft_nms`): the highest remaining score is picked and multiplies its
    neighbours' by 1 - IoU. Hard NMS (mmcv `nms`) is the same with 0 in place of 1 - IoU. Boxes without neighbours keep
    their scores, so only the others take part; in soft NMS only while scores are kept, since a pick lowers none of the
    picks before it.
    """
    lowest = float(np.float32(settings.min_score)) if settings.nms == "soft" else 0.0
    final = scores.copy()
    some = np.flatnonzero(scores >= lowest)
    if len(some) == len(scores):
        final = _suppress_some(boxes, scores, labels, settings, lowest)
    elif len(some):
        final[some] = _suppress_some(boxes[some], scores[some], labels[some], settings, lowest)
    best = scores.argmax()
    final[best] = scores[best]
    return final


def _suppress_some(boxes: Floats, scores: Floats, labels: Ints, settings: PostprocessSettings, lowest: float) -> Floats:
    """As `_suppress`, of boxes whose scores are at least `lowest`, where picking ends."""
    classes = None if settings.class_agnostic else labels
    neighbours = _Neighbours(boxes, classes, settings)
    order, count = _reach(boxes, classes, settings.iou_threshold)
    if int(count.sum()) > len(boxes) ** 2 / 8:  # a crowd, whose pairs are more work than those of all boxes
        final = _pick_in_turn(scores, neighbours.row, lowest)
        for index in np.flatnonzero(scores <= 0).tolist():  # never picked
            if (neighbours.row(index) == 1).all():
                final[index] = scores[index]
        return final
    final = scores.copy()
    left = np.repeat(np.arange(len(boxes)), count)
    right = np.arange(1, len(left) + 1) + np.repeat(np.arange(len(boxes)) - (np.cumsum(count) - count), count)
    first, second = order[left], order[right]
    factors = neighbours.factors(first, second)
    near = np.flatnonzero(factors < 1)
    if len(near):
        first, second, factors = first[near], second[near], factors[near]
        place = np.zeros(len(boxes), np.intp)
        place[first] = place[second] = 1
        crowded = np.flatnonzero(place)
        place[crowded] = np.arange(len(crowded))
        weights = np.ones((len(crowded), len(crowded)), np.float32)
        weights[place[first], place[second]] = weights[place[second], place[first]] = factors
        final[crowded] = _pick_in_turn(scores[crowded], weights.__getitem__, lowest)
    return final


def _pick_in_turn(scores: Floats, row: Callable[[int], Floats], lowest: float) -> Floats:
    """Return the scores at which boxes are picked, or -1, until they are 0 or below `lowest`.

    A pick multiplies the others' scores by its row `[K]`.
    """
    final = np.full(len(scores), -1, np.float32)
    remaining = scores.copy()
    picks: list[int] = []
    picked_scores: list[float] = []
    for _ in range(len(scores)):
        best = int(remaining.argmax())
        score = remaining.item(best)
        if score <= 0 or score < lowest:
            break
        picks.append(best)
        picked_scores.append(score)
        np.multiply(remaining, row(best), out=remaining)
        remaining[best] = 0  # and not less: negative scores would dwindle to denormal numbers, which are slow
    final[picks] = picked_scores
    return final


class _Neighbours:
    """What a pick multiplies the others' scores by: 1 for those that are no neighbours.

    Args:
        boxes: float32 `[K, 4]`.
        labels: int32 `[K]`, if only boxes of one label are neighbours.
        settings: the kind of NMS and its threshold.
    """

    def __init__(self, boxes: Floats, labels: Ints | None, settings: PostprocessSettings) -> None:
        corners = np.ascontiguousarray(boxes.T)
        self._low, self._high = corners[:2], corners[2:]  # [2, K]
        self._area = (corners[2] - corners[0]) * (corners[3] - corners[1])
        self._labels = labels
        self._is_hard = settings.nms == "hard"
        self._iou_threshold = settings.iou_threshold
        self._blocks: dict[int, Floats] = {}

    def row(self, index: int) -> Floats:
        """Return one box's factors for all, `[K]`, 1 for itself and those of other labels."""
        block, place = divmod(index, _BLOCK_ROWS)
        if block not in self._blocks:
            self._blocks[block] = self._block(slice(block * _BLOCK_ROWS, (block + 1) * _BLOCK_ROWS))
        row: Floats = self._blocks[block][place]
        return row

    def factors(self, first: Indices, second: Indices) -> Floats:
        """Return the factors of pairs of boxes of one label, `[P]`."""
        low = np.maximum(self._low.take(first, 1), self._low.take(second, 1))
        high = np.minimum(self._high.take(first, 1), self._high.take(second, 1))
        return self._factors(*self._near(low, high, self._area[first] + self._area[second]))

    def _block(self, rows: slice) -> Floats:
        """Return the factors of some boxes for all, `[R, K]`."""
        low = np.maximum(self._low[:, rows, None], self._low[:, None])
        high = np.minimum(self._high[:, rows, None], self._high[:, None])
        iou, near = self._near(low, high, self._area[rows, None] + self._area)
        np.fill_diagonal(near[:, rows], False)
        if self._labels is not None:
            near &= self._labels[rows, None] == self._labels
        return self._factors(iou, near)

    def _near(self, low: Floats, high: Floats, areas: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return the IoU of pairs, below 0 for some that do not overlap, and whether it reaches the threshold.

        Args:
            low: the corners of their overlap, as `high`, `[2, ...]`; changed.
            high: changed.
            areas: of the two boxes together, `[...]`; changed.
        """
        width, height = np.subtract(high, low, out=high)
        last = width.shape[-1:]  # NumPy takes the larger of two arrays' numbers faster than of one's and a number
        iou = np.maximum(width, np.zeros(last, np.float32), out=width)
        iou *= height
        areas -= iou
        iou /= np.maximum(areas, np.full(last, _TINY), out=areas)
        return iou, iou > self._iou_threshold if self._is_hard else iou >= np.float32(self._iou_threshold)

    def _factors(self, iou: Floats, near: npt.NDArray[np.bool_]) -> Floats:
        if self._is_hard:
            return (~near).astype(np.float32)
        # The IoU's bits, or none: `np.where` takes ten times as long, for a processor cannot guess who is near.
        bits = iou.view(np.int32)
        bits &= np.negative(near.view(np.int8), dtype=np.int32)
        return np.subtract(1, iou, out=iou)


def _reach(boxes: Floats, labels: Ints | None, iou_threshold: float) -> tuple[Indices, Indices]:
    """Return an order of the boxes, and of how many that follow each the IoU may reach the threshold, both `[K]`.

    An IoU of t takes an overlap of t times each box's width, so the box further right begins in the first 1 - t of the
    other; and only boxes of one label count, if there are labels. Of 300 candidates few pairs are left, where the whole
    matrix would be most of the work.
    """
    x1 = boxes[:, 0].astype(np.float64)
    # A little more, for what float32 rounds; and at a threshold of 0 boxes count that do not even touch.
    reach = (boxes[:, 2] - x1) * (1.001 - iou_threshold) + 1e-3 if iou_threshold > 0 else np.full(len(x1), np.inf)
    if labels is not None:  # each label has a region of its own, which none of its boxes reaches beyond
        x1 -= np.minimum.reduce(x1)
        region, number = np.maximum.reduce(x1) + 1, _numbers(labels)
        x1 += number * region
        reach = np.minimum(reach, (number + 1) * region - x1 - 0.5)
    order = np.argsort(x1, kind="stable")
    x1, reach = x1[order], reach[order]
    count = np.searchsorted(x1, x1 + reach, side="right") - np.arange(1, len(x1) + 1)
    return order, np.maximum(count, 0)


def _numbers(labels: Ints) -> npt.NDArray[Any]:
    """Return small numbers, equal for equal labels and for no others."""
    lowest = int(np.minimum.reduce(labels))
    if int(np.maximum.reduce(labels)) - lowest < _FEW_LABELS:
        return labels - lowest
    return np.unique(labels, return_inverse=True)[1]


def _rows(values: npt.NDArray[Any], rows: int, padding: float) -> npt.NDArray[Any]:
    padded = np.full((rows, *values.shape[1:]), padding, values.dtype)
    padded[: len(values)] = values
    return padded
