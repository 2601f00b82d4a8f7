from __future__ import annotations

import numpy as np
import pytest

from perf.statistics import relative_range, summarise


def test_summary_ignores_an_outlier() -> None:
    summary = summarise([1.0, 1.1, 0.9, 1.0, 50.0])
    assert summary.median == 1.0
    assert summary.spread == pytest.approx(0.14826)
    assert summary.count == 5


def test_spread_is_the_standard_deviation_of_normal_noise() -> None:
    values = np.random.default_rng(0).normal(10, 1, 20_000)
    assert summarise(values.tolist()).spread == pytest.approx(0.1, rel=0.03)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([4.0], 0.0, id="one run has no spread"),
        pytest.param([9.0, 10.0, 12.0], 0.3, id="three runs"),
        pytest.param([0.0, 0.0], 0.0, id="nothing measured, no division by zero"),
    ],
)
def test_relative_range(values: list[float], expected: float) -> None:
    assert relative_range(values) == pytest.approx(expected)
