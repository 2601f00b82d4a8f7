from __future__ import annotations

import pytest

pytest.importorskip("torch")

from perf import latency  # after the check for torch
from perf.latency import MIN_CALLS, WARM_UP_CALLS, latency_of, measure_latency, warm_up


def test_warm_up_ends_when_the_median_stands_still() -> None:
    times = iter([9.0] * WARM_UP_CALLS + [5.0] * WARM_UP_CALLS + [4.95] * WARM_UP_CALLS)
    assert warm_up(lambda: next(times), seconds=60)
    assert next(times, None) is None


def test_a_warm_up_that_never_ends_is_cut() -> None:
    times = (2.0**i for i in range(10**6))
    assert not warm_up(lambda: next(times), seconds=0)


def test_percentiles_are_of_single_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([float(i) for i in range(1, MIN_CALLS + 1)])
    monkeypatch.setattr(latency, "warm_up", lambda timed, seconds: True)
    monkeypatch.setitem(latency.TIMERS, "cpu", lambda call: next(times))
    found = measure_latency(lambda: None, "cpu", seconds=0)
    assert (found.p50_ms, found.p90_ms, found.p99_ms) == pytest.approx((5.5, 9.1, 9.91))
    assert (found.calls, found.stable) == (MIN_CALLS, True)
    assert found.calls_per_s == pytest.approx(1e3 / 5.5)


def test_a_program_that_measured_itself_has_a_warm_up_too() -> None:
    windows = [[9.0] * WARM_UP_CALLS, [5.0] * WARM_UP_CALLS, [4.95] * WARM_UP_CALLS, [4.0] * 5 * WARM_UP_CALLS]
    found = latency_of([time for window in windows for time in window], calls_per_s=250.0)
    assert (found.p50_ms, found.calls, found.stable) == (4.0, 5 * WARM_UP_CALLS, True)
    assert found.calls_per_s == 250.0


def test_without_an_end_the_warm_up_is_the_first_half() -> None:
    found = latency_of([2.0**i for i in range(40)], calls_per_s=1.0)
    assert (found.calls, found.stable) == (20, False)
