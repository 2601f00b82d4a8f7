import numpy as np
import pytest

from builder.engines import EngineOutput
from builder.verify import compare, fit, run_batched


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
    found, largest, _ = compare(EXPECTED, actual)
    assert found == matched
    assert largest == pytest.approx(difference, abs=1e-6)


def test_empty_boxes_match_themselves():
    empty = output([[0.5, 0.5, 0.5, 0.5]], [0.1], [0])
    assert compare(empty, empty)[0] == 1


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
