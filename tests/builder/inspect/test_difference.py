import math

import pytest
import torch

from builder.inspect.difference import WORST, difference

NAN, INF = math.nan, math.inf


def test_the_error_is_relative_to_the_tensors_own_size():
    expected = torch.tensor([3.0, -4.0])
    for scale in (1e-3, 1.0, 1e6):
        found = difference(expected * scale, expected * scale * 1.01)
        assert found.error == pytest.approx(0.01, rel=1e-3)
        assert found.not_finite == 0


def test_one_element_far_away_counts_where_the_mean_hides_it():
    expected = torch.ones(1_000_000)
    actual = expected.clone()
    actual[5] += 0.1
    found = difference(expected, actual)
    assert found.error == pytest.approx(1e-4, rel=1e-3)
    assert found.worst == pytest.approx(0.05, rel=1e-3)
    assert found.judged == pytest.approx(0.05 / WORST, rel=1e-3)


@pytest.mark.parametrize(
    ("expected", "actual", "not_finite"),
    [
        pytest.param([1.0, NAN, INF, -INF], [1.0, NAN, INF, -INF], 0, id="masks that agree"),
        pytest.param([1.0, 2.0], [1.0, NAN], 1, id="the engine's NaN"),
        pytest.param([1.0, NAN], [1.0, 2.0], 1, id="PyTorch's NaN"),
        pytest.param([1.0, INF], [1.0, -INF], 1, id="the other infinity"),
        pytest.param([1.0, 2.0, 3.0], [INF, NAN, 3.0], 2, id="overflow"),
    ],
)
def test_what_is_no_number(expected, actual, not_finite):
    found = difference(torch.tensor(expected), torch.tensor(actual))
    assert found.not_finite == not_finite
    assert found.error == (0 if not_finite == 0 else INF)


def test_a_tensor_of_zeros_may_only_be_zeros():
    assert difference(torch.zeros(3), torch.zeros(3)).judged == 0
    assert difference(torch.zeros(3), torch.tensor([0.0, 1e-9, 0.0])).error == INF


def test_large_tensors_are_compared_piece_by_piece(monkeypatch):
    expected = torch.linspace(-1, 1, 1001)
    actual = expected * 1.01
    actual[700], expected[3], actual[3] = 5.0, NAN, NAN
    whole = difference(expected, actual)
    monkeypatch.setattr("builder.inspect.difference.CHUNK", 64)
    pieces = difference(expected, actual)
    assert pieces.error == pytest.approx(whole.error)
    assert pieces.worst == pytest.approx(whole.worst) == pytest.approx((5 - 0.4) / (0.577 + 0.4), rel=0.01)
    assert pieces.not_finite == whole.not_finite == 0


def test_types_may_differ():
    expected = torch.linspace(0.1, 1, 100)
    assert 0 < difference(expected, expected.half()).error < 3e-4
