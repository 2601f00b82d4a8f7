import numpy as np
import pytest

from builder.demo import CLASS_NAMES, shapes
from builder.engines import EngineOutput
from builder.samples import Samples, sample_images
from builder.verify import Limits, Verification, average_precision, compare, fit, overall, run_batched


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
    found, _, largest, _ = overall(EXPECTED, actual)
    assert found == matched
    assert largest == pytest.approx(difference, abs=1e-6)


def test_one_strange_score_is_not_usual():
    boxes = np.tile([0.1, 0.1, 0.5, 0.5], (40, 1))
    labels, scores = np.arange(40), np.full(40, 0.5)
    strange = np.where(np.arange(40) < 2, 0.9, 0.51)
    found = overall(output(boxes, scores, labels), output(boxes, strange, labels))
    assert found.usual_score_difference == pytest.approx(0.01)
    assert found.max_score_difference == pytest.approx(0.4)


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


LIMIT = Limits(min_matched=0.9, max_usual_score_difference=0.1, max_ap_loss=0.01)


@pytest.mark.parametrize(
    ("figures", "fault"),
    [
        pytest.param((0.95, 0.05, 0.9, 1.0, None), None, id="within, batch of 1, not annotated"),
        pytest.param((0.95, 0.05, 0.9, 1.0, 0.95, 0.5, 0.495), None, id="within"),
        pytest.param((0.95, 0.05, 0.9, 1.0, 1.0, 0.5, 0.6), None, id="a better AP is no fault"),
        pytest.param(
            (0.85, 0.05, 0.9, 1.0, 1.0), "found 85.0% of the detector's candidates, expected 90%", id="matched"
        ),
        pytest.param((0.95, 0.15, 0.9, 1.0, 1.0), "95% of scores differ by up to 0.1500, expected 0.1", id="scores"),
        pytest.param((0.95, 0.05, 0.9, 1.0, 0.85), "the largest batch finds 85.0% of what batch 1 finds", id="batch"),
        pytest.param(
            (0.95, 0.05, 0.9, 1.0, 1.0, 0.5, 0.48),
            "AP is 0.4800 instead of 0.5000, expected a loss of at most 0.01",
            id="AP",
        ),
    ],
)
def test_each_limit_has_its_fault(figures, fault):
    faults = Verification(8, 800, *figures).faults(LIMIT)
    assert len(faults) == (fault is not None)
    assert not faults or faults[0].startswith(fault)
