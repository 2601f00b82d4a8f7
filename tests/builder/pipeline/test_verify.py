import dataclasses

import numpy as np
import pytest
import torch

from builder.detector import Detector
from builder.engines import EngineOutput
from builder.pipeline.samples import Samples, sample_images
from builder.pipeline.verify import (
    LIMITS,
    Limits,
    Verification,
    VerificationError,
    average_precision,
    compare,
    fit,
    overall,
    run_batched,
    verify,
)
from demo.shapes import CLASS_NAMES
from demo.shapes import draw as shapes
from serving.rules import Suppression


def output(boxes, scores, labels):
    return EngineOutput(np.array([boxes], np.float32), np.array([scores], np.float32), np.array([labels], np.int32))


EXPECTED = output([[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9]], [0.9, 0.5], [1, 2])


@pytest.mark.parametrize(
    ("actual", "matched", "difference"),
    [
        pytest.param(EXPECTED, 1.0, 0.0, id="itself"),
        pytest.param(output(EXPECTED.boxes[0][::-1], [0.5, 0.9], [2, 1]), 1.0, 0.0, id="order does not matter"),
        pytest.param(output(EXPECTED.boxes[0], [0.7, 0.5], [1, 2]), 1.0, 0.2, id="another score"),
        pytest.param(output(EXPECTED.boxes[0], [0.9, 0.5], [1, 3]), 0.5, 0.0, id="another class"),
        pytest.param(output(EXPECTED.boxes[0] + 0.1, [0.9, 0.5], [1, 2]), 0.0, 0.0, id="moved boxes"),
        pytest.param(output(np.full((2, 4), np.nan), [0.9, 0.5], [1, 2]), 0.0, 0.0, id="nan boxes"),
    ],
)
def test_compare(actual, matched, difference):
    found = overall(EXPECTED, actual)
    assert (found.matched, found.matched_back) == (matched, matched)
    assert found.max_score_difference == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize("axis", [0, 1], ids=["narrower", "lower"])
@pytest.mark.parametrize(("share", "matched"), [(0.91, 1), (0.89, 0)])
def test_a_candidate_is_found_again_from_an_overlap_of_nine_tenths(axis, share, matched):
    box = np.array([0.1, 0.2, 0.9, 0.5])
    smaller = box.copy()
    smaller[2 + axis] = box[axis] + share * (box[2 + axis] - box[axis])
    found = overall(output([box], [0.5], [1]), output([smaller], [0.5], [1]))
    assert (found.matched, found.matched_back) == (matched, matched)
    assert found.mean_box_iou == pytest.approx(share, abs=1e-6)


def test_the_overlap_of_a_candidate_that_is_not_found_is_its_largest():
    half, far = [0.1, 0.1, 0.3, 0.5], [0.6, 0.6, 0.9, 0.9]
    found = overall(output([[0.1, 0.1, 0.5, 0.5]], [0.5], [1]), output([far, half], [0.9, 0.5], [1, 1]))
    assert found.mean_box_iou == pytest.approx(0.25), "of the other direction: 0.5 and 0"


def test_one_strange_score_is_not_usual():
    boxes = np.tile([0.1, 0.1, 0.5, 0.5], (40, 1))
    labels, scores = np.arange(40), np.full(40, 0.5)
    strange = np.where(np.arange(40) < 2, 0.9, 0.51)
    found = overall(output(boxes, scores, labels), output(boxes, strange, labels))
    assert found.usual_score_difference == pytest.approx(0.01)
    assert found.max_score_difference == pytest.approx(0.4)


def test_one_direction_may_fail_alone():
    """Twice the same candidate is found twice, and half of what it is found in is something else."""
    twice = output(EXPECTED.boxes[0][[0, 0]], [0.9, 0.9], [1, 1])
    found = overall(twice, EXPECTED)
    assert (found.matched, found.matched_back) == (1, 0.5)
    found = overall(EXPECTED, twice)
    assert (found.matched, found.matched_back) == (0.5, 1)


def test_images_are_compared_each_for_itself():
    two = EngineOutput(*(np.concatenate([part, part]) for part in EXPECTED))
    moved = two._replace(boxes=two.boxes + np.array([0, 0.1], np.float32)[:, None, None])
    assert [each.matched for each in compare(two, moved)] == [1, 0]
    assert overall(two, moved).matched == 0.5


def test_empty_boxes_match_themselves():
    empty = output([[0.5, 0.5, 0.5, 0.5]], [0.1], [0])
    assert overall(empty, empty).matched == 1


def test_batches_are_filled_and_cut_back():
    seen = []

    def run(images, image_sizes):
        seen.append(len(images))
        return EngineOutput(
            np.repeat(image_sizes[:, None, [0, 1, 0, 1]], 1, 1).astype(np.float32),
            image_sizes[:, :1].astype(np.float32),
            image_sizes[:, 1:],
        )

    pixels, sizes = fit([np.zeros((h, 10, 3), np.uint8) for h in (10, 20, 5)], 40, 40)
    out = run_batched(run, pixels, sizes, 2)
    assert seen == [2, 2]
    assert out.scores[:, 0].tolist() == sizes[:, 0].tolist() == [40, 40, 20]


def annotated(shift=0.0):
    """Annotated samples, and candidates that are their annotations moved by a share of the image."""
    samples = sample_images(CLASS_NAMES)
    drawn = [shapes.generate(20, index) for index in range(len(samples.images))]
    rows = max(len(each.labels) for each in drawn)
    boxes, scores = np.zeros((len(drawn), rows, 4), np.float32), np.zeros((len(drawn), rows), np.float32)
    labels = np.zeros((len(drawn), rows), np.int32)
    for index, each in enumerate(drawn):
        height, width = each.image.shape[:2]
        n = len(each.labels)
        boxes[index, :n] = each.boxes / [width, height, width, height] + shift
        scores[index, :n], labels[index, :n] = 0.9, each.labels
    return samples, EngineOutput(boxes, scores, labels)


def test_the_annotations_themselves_have_an_ap_of_1():
    samples, exact = annotated()
    assert average_precision(exact, samples) == pytest.approx(1)
    assert average_precision(annotated(shift=0.01)[1], samples) < 0.9
    assert average_precision(exact, Samples(samples.images, samples.names)) is None


def test_the_ap_is_that_of_the_variants_suppression():
    samples, exact = annotated()
    twice = EngineOutput(*(np.repeat(part, 2, axis=1) for part in exact))  # every second candidate is superfluous
    hard, none = (average_precision(twice, samples, Suppression(kind)) for kind in ("hard", "none"))
    assert hard == pytest.approx(1)
    assert none < 0.9


LIMIT = Limits(min_matched=0.9, max_usual_score_difference=0.1, max_ap_loss=0.01)
GOOD = Verification(8, 800, 0.95, 0.95, 0.05, 0.9, 1.0, 0.95)


@pytest.mark.parametrize(
    ("figures", "fault"),
    [
        pytest.param({"batch_matched": None}, None, id="within, batch of 1, not annotated"),
        pytest.param({"ap": 0.5, "ap_engine": 0.495}, None, id="within"),
        pytest.param({"ap": 0.5, "ap_engine": 0.6}, None, id="a better AP is no fault"),
        pytest.param({"matched": 0.85}, "found 85.0% of the detector's candidates, expected 90%", id="matched"),
        pytest.param(
            {"matched_back": 0.85},
            "85.0% of the engine's candidates are the detector's, expected 90%",
            id="other direction",
        ),
        pytest.param(
            {"usual_score_difference": 0.15}, "95% of scores differ by up to 0.1500, expected 0.1", id="scores"
        ),
        pytest.param(
            {"batch_matched": 0.85},
            "the largest batch and batch 1 have 85.0% of their candidates in common, expected 90%",
            id="batch",
        ),
        pytest.param(
            {"ap": 0.5, "ap_engine": 0.48}, "AP is 0.4800 instead of 0.5000, expected a loss of at most 0.01", id="AP"
        ),
        pytest.param({"not_finite": 3}, "3 of the engine's candidates are NaN or infinite, expected none", id="nan"),
        *(
            pytest.param({"ap": 0.5, key: float("nan")}, "", id=f"{key} is NaN")
            for key in ("matched", "matched_back", "usual_score_difference", "batch_matched", "ap_engine")
        ),
    ],
)
def test_each_limit_has_its_fault(figures, fault):
    faults = dataclasses.replace(GOOD, **figures).faults(LIMIT)
    assert len(faults) == (fault is not None)
    assert not faults or faults[0].startswith(fault)


class StandIn(Detector):
    """A detector of 300 candidates that depend on the brightness of the image alone, best first."""

    def __init__(self):
        super().__init__()
        generator = np.random.default_rng(0)
        corners = generator.uniform(0, 0.5, (300, 2))
        boxes = np.concatenate([corners, corners + generator.uniform(0.1, 0.5, (300, 2))], 1)
        self.boxes = torch.nn.Parameter(torch.from_numpy(boxes).float(), requires_grad=False)
        self.scores = torch.nn.Parameter(torch.linspace(0.9, 0.01, 300), requires_grad=False)

    def forward(self, images, image_sizes):
        light = images.float().mean((1, 2, 3)) / 255
        labels = torch.arange(300, dtype=torch.int32) % 8
        return self.boxes.expand(len(images), -1, -1), light[:, None] * self.scores, labels.expand(len(images), -1)


SAMPLES = Samples([np.full((30, 40, 3), light, np.uint8) for light in (90, 200, 255)], ["dark", "grey", "white"])


def verified(change=lambda boxes, scores, batch: None, detector=None):
    """Compare the stand-in with an engine that is the stand-in, its boxes and scores changed."""

    def run(images, image_sizes):
        with torch.inference_mode():
            found = StandIn()(torch.from_numpy(images), torch.from_numpy(image_sizes))
        boxes, scores, labels = (part.numpy().copy() for part in found)
        change(boxes, scores, len(images))
        return EngineOutput(boxes, scores, labels)

    return verify(detector or StandIn(), run, SAMPLES, 32, 48, (1, 2), LIMITS["bfloat16"])


def test_the_same_candidates_agree():
    result = verified().check()
    assert (result.matched, result.matched_back, result.batch_matched, result.not_finite) == (1, 1, 1, 0)


@pytest.mark.parametrize("allowed", [True, False])
def test_the_reference_uses_no_tf32(allowed, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    forward = StandIn.forward

    def watched(self, *inputs):
        seen.append(torch.backends.cudnn.allow_tf32)
        return forward(self, *inputs)

    detector = StandIn()
    detector.forward = watched.__get__(detector)
    verified(detector=detector)
    assert seen == [False] * 3
    assert torch.backends.cudnn.allow_tf32 is allowed


def scores_become(value, rows=slice(None), batches=(1, 2)):
    def change(boxes, scores, batch):
        if batch in batches:
            scores[:, rows] = value

    return change


def false_positives(boxes, scores, batch):
    boxes[:, 200:], scores[:, 200:] = [0, 0, 1, 1], 0.999


def endless_box(boxes, scores, batch):
    boxes[:, 250, 2] = np.inf


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        pytest.param(scores_become(np.nan), "detector: 1800 of the engine's candidates are NaN", id="every score"),
        pytest.param(
            scores_become(np.nan, slice(None, None, 2)), "detector: 900 of the engine's candidates are", id="every 2nd"
        ),
        pytest.param(
            scores_become(np.nan, 299, {2}), "detector: 3 of the engine's candidates", id="largest batch only"
        ),
        pytest.param(endless_box, "detector: 6 of the engine's candidates are NaN or infinite", id="infinite box"),
        pytest.param(
            false_positives,
            "detector: 0.0% of the engine's candidates are the detector's, expected 85%",
            id="false positives past the best",
        ),
    ],
)
def test_an_engine_that_is_wrong_in_one_way_is_refused(change, fault):
    with pytest.raises(VerificationError, match=fault):
        verified(change).check()


def test_a_detector_of_nan_is_named_instead_of_compared():
    detector = StandIn()
    detector.scores[7] = torch.nan
    with pytest.raises(VerificationError, match="3 candidates of the PyTorch detector itself are NaN or infinite"):
        verified(detector=detector)
