from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import CodetrError
from serving.postprocess import Postprocessed, PostprocessSettings, pick, postprocess, to_pixels

# Results of mmcv's CPU operators, see `tests/data/README.md`.
GOLDEN = np.load(Path(__file__).parents[1] / "data" / "nms.npz")
SOFT = PostprocessSettings()


def case(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, scores and labels above the case's score threshold."""
    boxes, scores, labels = (GOLDEN[f"{name}/{key}"] for key in ("boxes", "scores", "labels"))
    keep = scores > GOLDEN[f"{name}/score_threshold"] if GOLDEN[f"{name}/score_threshold"] > 0 else scores > -1
    return boxes[keep], scores[keep], labels[keep].astype(np.int32)


@pytest.mark.parametrize("name", ["case0", "case1", "case2", "case3"])
@pytest.mark.parametrize(
    ("reference", "settings"),
    [
        pytest.param("soft_nms_iou0.8", SOFT, id="linear soft NMS"),
        pytest.param("nms_iou0.8", replace(SOFT, nms="hard"), id="hard NMS"),
        pytest.param("nms_iou0.5", replace(SOFT, nms="hard", iou_threshold=0.5), id="hard NMS at 0.5"),
        pytest.param(
            "cpp_agnostic_nms_iou0.5",
            replace(SOFT, nms="hard", iou_threshold=0.5, class_agnostic=True),
            id="hard NMS across classes",
        ),
    ],
)
def test_equals_mmcv(name: str, reference: str, settings: PostprocessSettings) -> None:
    picks, scores = pick(*case(name), settings)
    np.testing.assert_array_equal(picks, GOLDEN[f"{name}/{reference}/index_after_threshold"])
    if not settings.class_agnostic:
        # mmcv rounds coordinates when it shifts classes apart; see `pick`.
        np.testing.assert_allclose(scores, GOLDEN[f"{name}/{reference}/scores"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["case0", "case1", "case2", "case3"])
def test_whole_step_equals_mmcv(name: str) -> None:
    boxes, scores, labels = (GOLDEN[f"{name}/{key}"] for key in ("boxes", "scores", "labels"))
    height = width = 1024  # a power of two: relative coordinates lose nothing
    assert boxes.max() <= 1024
    settings = replace(SOFT, score_threshold=float(GOLDEN[f"{name}/score_threshold"]))
    result = postprocess(boxes / np.float32(1024), scores, labels.astype(np.int32), (height, width), settings)
    n = result.num_detections
    np.testing.assert_array_equal(result.boxes[:n], GOLDEN[f"{name}/soft_nms_iou0.8/boxes"])
    np.testing.assert_allclose(result.scores[:n], GOLDEN[f"{name}/soft_nms_iou0.8/scores"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(result.labels[:n], GOLDEN[f"{name}/soft_nms_iou0.8/labels"])


def run(boxes: Any, scores: Any, labels: Any, size: tuple[int, int] = (10, 20), **settings: Any) -> Postprocessed:
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(labels, np.int32)
    return postprocess(*arrays, size, replace(SOFT, max_detections=4, **settings))


def test_padding_rows_and_types() -> None:
    result = run([[0, 0, 0.5, 0.5]], [0.5], [3])
    np.testing.assert_array_equal(result.boxes, [[0, 0, 10, 5], [0] * 4, [0] * 4, [0] * 4])
    np.testing.assert_array_equal(result.scores, [0.5, 0, 0, 0])
    np.testing.assert_array_equal(result.labels, [3, -1, -1, -1])
    assert result.num_detections == 1
    assert (result.boxes.dtype, result.scores.dtype, result.labels.dtype) == (np.float32, np.float32, np.int32)


def test_no_candidates() -> None:
    result = run([], [], [])
    assert result.num_detections == 0
    assert result.boxes.shape == (4, 4)
    assert (result.labels == -1).all()


def test_more_candidates_than_rows_keeps_the_best() -> None:
    boxes = [[i / 10, 0, (i + 1) / 10, 1] for i in range(6)]
    result = run(boxes, [0.1, 0.6, 0.2, 0.5, 0.3, 0.4], range(6))
    assert result.num_detections == 4
    np.testing.assert_array_equal(result.labels, [1, 3, 5, 4])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_candidates_that_are_no_numbers_are_dropped_and_counted(bad: float) -> None:
    boxes = [[0, 0, bad, 1], [0, 0, 1, 1], [0.5, 0.5, 1, 1]]
    result = run(boxes, [0.9, 0.8, bad], [1, 2, 3])
    assert (result.num_detections, result.num_dropped) == (1, 2)
    assert result.labels[0] == 2
    assert np.isfinite(result.boxes).all()
    assert np.isfinite(result.scores).all()


def test_score_threshold_is_exclusive_and_precedes_nms() -> None:
    boxes = [[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 0.1, 0.1]]
    result = run(boxes, [0.9, 0.6, 0.5], [1, 1, 2], score_threshold=0.5)
    assert result.num_detections == 2  # 0.5 is not above 0.5; 0.6 is, although soft NMS lowers it to 0.06
    np.testing.assert_allclose(result.scores[:2], [0.9, 0.06], atol=1e-6)


def test_soft_nms_drops_below_the_minimum_but_never_the_first_pick() -> None:
    boxes = [[0, 0, 1, 1], [0, 0, 1, 1], [0.5, 0.5, 1, 1]]
    assert run(boxes, [0.9, 0.8, 0.0005], [1, 1, 2]).num_detections == 1
    assert run(boxes, [0.0009, 0.0008, 0.0005], [1, 1, 2]).num_detections == 1
    assert run(boxes, [0.9, 0.8, 0.0005], [1, 1, 2], min_score=0.0).num_detections == 2


@pytest.mark.parametrize("nms", ["soft", "hard"])
def test_classes_suppress_each_other_only_when_told(nms: Any) -> None:
    boxes = [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert run(boxes, [0.9, 0.8], [1, 2], nms=nms).num_detections == 2
    assert run(boxes, [0.9, 0.8], [1, 2], nms=nms, class_agnostic=True).num_detections == 1


def test_without_nms_everything_is_kept_in_order_of_score() -> None:
    result = run([[0, 0, 1, 1]] * 3, [0.2, 0.9, 0.2], [1, 2, 3], nms="none")
    np.testing.assert_array_equal(result.labels[:3], [2, 1, 3])


def test_scores_of_zero_are_kept_without_nms() -> None:
    assert run([[0, 0, 1, 1]] * 3, [0.5, 0, 0], [1, 2, 3], nms="none").num_detections == 3


def test_one_row_is_possible() -> None:
    settings = replace(SOFT, max_detections=1)
    result = postprocess(np.zeros((2, 4), np.float32), np.float32([0.2, 0.9]), np.int32([4, 5]), (10, 20), settings)
    assert result.labels.tolist() == [5]


def test_overlap_is_measured_in_the_original_image() -> None:
    """Clipping comes before NMS: two boxes that reach out of the image differently are the same inside it."""
    result = run([[0, 0, 1, 1], [-1, -1, 2, 2]], [0.9, 0.8], [1, 1])
    assert result.num_detections == 1


def test_boxes_scale_by_width_and_height_and_are_clipped() -> None:
    boxes = np.array([[-0.1, 0.25, 1.5, 0.75]], np.float32)
    np.testing.assert_array_equal(to_pixels(boxes, (100, 30)), [[0, 25, 30, 75]])


def test_clipped_coordinates_have_no_minus_zero() -> None:
    assert not np.signbit(to_pixels(np.array([[-0.0, -1, 0.5, 1]], np.float32), (100, 30))).any()


@pytest.mark.parametrize("nms", ["soft", "hard"])
def test_scores_of_zero_leave_one_box_with_that_score(nms: Any) -> None:
    result = run([[0, 0, 1, 1]] * 2, [0, 0], [1, 1], nms=nms)
    assert (result.num_detections, result.scores[0]) == (1, 0)


@pytest.mark.parametrize("nms", ["soft", "hard"])
def test_empty_boxes_suppress_nothing(nms: Any) -> None:
    result = run([[0.5, 0.5, 0.5, 0.5]] * 2 + [[0, 0, 1, 1]], [0.9, 0.8, 0.7], [1, 1, 1], nms=nms)
    np.testing.assert_allclose(result.scores[:3], [0.9, 0.8, 0.7])


@pytest.mark.parametrize("nms", ["soft", "hard"])
@pytest.mark.parametrize("count", [2, 47, 48, 49, 96, 301], ids="{} boxes".format)
def test_equals_the_definition_at_any_number_of_boxes(nms: Any, count: int) -> None:
    random = np.random.default_rng(count)
    corners = random.uniform(0, 60, (count, 2))
    boxes = np.hstack([corners, corners + random.uniform(40, 60, (count, 2))]).astype(np.float32)
    scores = random.uniform(0.01, 1, count).astype(np.float32)
    labels = random.integers(0, 3, count).astype(np.int32)
    settings = PostprocessSettings(nms=nms, iou_threshold=0.4)
    picks, picked_scores = pick(boxes, scores, labels, settings)
    expected = definition(boxes.astype(np.float64), scores, labels, settings)
    np.testing.assert_array_equal(picks, [index for index, _ in expected])
    np.testing.assert_allclose(picked_scores, [score for _, score in expected], rtol=1e-3)


@pytest.mark.parametrize("nms", ["soft", "hard"])
@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("kinds", [[0], [0, 1, 2, 3], [0, 7, 2**31 - 1]], ids=["one class", "four", "far apart"])
@pytest.mark.parametrize("side", [40, 3], ids=["spread", "crowd"])
@pytest.mark.parametrize("min_score", [0, 0.3], ids=["all kept", "picked above 0.3"])
def test_boxes_of_all_widths_and_distances_find_their_neighbours(
    nms: Any, threshold: float, kinds: list[int], side: float, min_score: float
) -> None:
    random = np.random.default_rng(7)
    corners = random.uniform(0, side, (150, 2)).repeat(2, axis=0)  # pairs with a corner in common, some the same box
    sides = random.choice([0.0, 0.3, 20, 21, 200], (300, 2))
    boxes = np.hstack([corners, corners + sides]).astype(np.float32)
    scores = random.permutation(np.arange(1, 301)).astype(np.float32) / 300
    settings = PostprocessSettings(nms=nms, iou_threshold=threshold, min_score=min_score)
    labels = random.choice(np.array(kinds, np.int32), 300)
    picks, picked_scores = pick(boxes, scores, labels, settings)
    expected = whole_matrix(boxes, scores, labels, settings)
    np.testing.assert_array_equal(picked_scores, [score for _, score in expected])
    np.testing.assert_array_equal(picks, [index for index, _ in expected])


def test_a_score_of_zero_beside_a_crowd_is_kept() -> None:
    boxes = np.array([[0, 0, 9, 9]] * 30 + [[50, 50, 60, 60]], np.float32)
    scores = np.array([0.5] * 30 + [0], np.float32)
    picks, _ = pick(boxes, scores, np.zeros(31, np.int32), PostprocessSettings(nms="hard"))
    np.testing.assert_array_equal(picks, [0, 30])


def whole_matrix(boxes: Any, scores: Any, labels: Any, settings: PostprocessSettings) -> list[tuple[int, Any]]:
    """Greedy NMS in float32, with the overlap of every pair of boxes."""
    low, high = boxes[:, :2], boxes[:, 2:]
    shared = np.maximum(np.minimum(high[:, None], high) - np.maximum(low[:, None], low), 0).prod(axis=2)
    area = (high - low).prod(axis=1)
    iou = shared / np.maximum(area[:, None] + area - shared, np.finfo(np.float32).tiny)
    hard = settings.nms == "hard"
    near = iou > settings.iou_threshold if hard else iou >= np.float32(settings.iou_threshold)
    near &= labels[:, None] == labels
    weights = np.where(near, np.float32(0) if hard else 1 - iou, np.float32(1))
    remaining, picks = scores.copy(), []
    while (best := int(remaining.argmax())) >= 0 and remaining[best] > 0:
        picks.append((best, remaining[best]))
        remaining *= weights[best]
        remaining[best] = -1
    return [pick for pick in picks if hard or pick[1] >= np.float32(settings.min_score)]


def definition(boxes: Any, scores: Any, labels: Any, settings: PostprocessSettings) -> list[tuple[int, float]]:
    """Greedy NMS one pair at a time."""
    remaining = {index: float(score) for index, score in enumerate(scores)}
    picks: list[tuple[int, float]] = []
    while remaining:
        best = max(remaining, key=lambda index: remaining[index])
        picks.append((best, remaining.pop(best)))
        for index in list(remaining):
            overlap = iou(boxes[best], boxes[index]) if labels[best] == labels[index] else 0
            if settings.nms == "soft" and overlap >= settings.iou_threshold:
                remaining[index] *= 1 - overlap
            suppressed = overlap > settings.iou_threshold if settings.nms == "hard" else False
            if suppressed or (settings.nms == "soft" and remaining[index] < settings.min_score):
                del remaining[index]
    return picks


def iou(a: Any, b: Any) -> float:
    shared = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"score_threshold": 1.5}, "score_threshold: expected a number in 0..1, got 1.5", id="above 1"),
        pytest.param({"iou_threshold": float("nan")}, "iou_threshold: expected a number in 0..1, got nan", id="NaN"),
        pytest.param({"min_score": -1}, "min_score: expected a number in 0..1, got -1", id="negative"),
        pytest.param({"nms": "fast"}, "nms: expected one of soft, hard, none, got 'fast'", id="unknown kind"),
        pytest.param({"max_detections": 0}, "max_detections: expected at least 1, got 0", id="no rows"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CodetrError, match=message):
        PostprocessSettings(**settings)


# float32(0.7) is below 0.7, float32(0.3) above 0.3: compared as they are, one threshold would lose its own score.
@pytest.mark.parametrize("value", [0.3, 0.7])
@pytest.mark.parametrize("nms", ["soft", "hard", "none"])
def test_a_requests_threshold_keeps_its_own_score_and_the_setting_drops_it(nms: Any, value: float) -> None:
    score = np.float32(value)
    scores = np.array([np.nextafter(score, np.float32(0)), score, np.nextafter(score, np.float32(1))])
    candidates = (np.float32([[0, 0, 0.1, 0.1]] * 3), scores, np.array([0, 1, 2], np.int32), (10, 10))
    settings = PostprocessSettings(nms=nms, max_detections=3)
    assert postprocess(*candidates, settings, value).labels.tolist() == [2, 1, -1]
    assert postprocess(*candidates, replace(settings, score_threshold=value)).labels.tolist() == [2, -1, -1]


def test_a_requests_threshold_takes_the_settings_place() -> None:
    candidates = (np.float32([[0, 0, 0.1, 0.1]] * 2), np.float32([0.0, 0.4]), np.array([0, 1], np.int32), (10, 10))
    settings = PostprocessSettings(score_threshold=0.5, nms="none", max_detections=2)
    assert postprocess(*candidates, settings).num_detections == 0
    assert postprocess(*candidates, settings, 0.0).num_detections == 2
    assert postprocess(*candidates, settings, 1.0).num_detections == 0


def test_a_requests_threshold_equals_leaving_out_what_is_below_it_at_the_end() -> None:
    generator = np.random.default_rng(4)
    corners = generator.random((60, 2), np.float32) * 0.3
    boxes = np.concatenate([corners, corners + 0.3], axis=1)
    candidates = (boxes, generator.random(60, np.float32), generator.integers(0, 2, 60, np.int32), (100, 100))
    settings = PostprocessSettings(iou_threshold=0.3, max_detections=60)
    whole = postprocess(*candidates, settings, 0.0)
    for lowest in (0.05, 0.3, float(whole.scores[10])):
        part, kept = postprocess(*candidates, settings, lowest), int((whole.scores >= np.float32(lowest)).sum())
        assert 0 < kept == part.num_detections < whole.num_detections
        np.testing.assert_array_equal(part.scores[:kept], whole.scores[:kept])
        np.testing.assert_array_equal(part.boxes[:kept], whole.boxes[:kept])
