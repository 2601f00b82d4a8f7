from __future__ import annotations

import numpy as np
import pytest

from perf.statistics import relative_range, summarise, windows_agree


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


@pytest.mark.parametrize(
    ("windows", "agree"),
    [
        pytest.param([(100.0, 20.0), (105.0, 22.0)], True, id="close"),
        pytest.param([(100.0, 20.0), (120.0, 20.0)], False, id="throughput wanders"),
        pytest.param([(100.0, 20.0), (100.0, 30.0)], False, id="p99 wanders"),
        pytest.param([], True, id="none"),
    ],
)
def test_windows_agree(windows: list[tuple[float, float]], agree: bool) -> None:
    assert windows_agree(windows) is agree
