import numpy as np
import pytest

from builder.pipeline.overlap import iou


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param([0, 0, 2, 2], [0, 0, 2, 2], 1.0, id="itself"),
        pytest.param([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, id="a corner"),
        pytest.param([0, 0, 4, 4], [1, 1, 3, 3], 0.25, id="inside"),
        pytest.param([0, 0, 1, 1], [1, 0, 2, 1], 0.0, id="side by side"),
        pytest.param([0, 0, 1, 1], [2, 2, 3, 3], 0.0, id="apart along both axes"),
        pytest.param([1, 1, 1, 1], [1, 1, 1, 1], 0.0, id="empty"),
        pytest.param([3, 3, 1, 1], [3, 3, 1, 1], 0.0, id="sides the wrong way round"),
    ],
)
def test_two_boxes(a, b, expected):
    found = iou(np.array([a], np.float32), np.array([b], np.float32))
    assert found.tolist() == [[pytest.approx(expected)]]


def test_every_pair_has_its_place():
    a = np.array([[0, 0, 2, 2], [0, 0, 1, 1]], np.float32)
    b = np.array([[0, 0, 1, 1], [0, 0, 2, 2], [5, 5, 6, 6]], np.float32)
    assert iou(a, b).tolist() == [[0.25, 1, 0], [1, 0.25, 0]]
    assert iou(a, b[:0]).shape == (2, 0)
