from __future__ import annotations

import pytest

from perf.server.metrics import StepTime
from perf.summaries import compare, summarise_levels, verdict
from tests.perf.records import reading, record, result


def test_repeats_become_medians_with_their_spread() -> None:
    passes = [
        result(repeat=n, reading=reading(rate, p99)) for n, (rate, p99) in enumerate([(90, 20), (100, 30), (130, 22)])
    ]
    (level,) = summarise_levels(record(*passes))
    assert (level.throughput, level.p99, level.repeats) == (100, 22, 3)
    assert level.spread == pytest.approx(0.4)
    assert level.p99_spread == pytest.approx(10 / 22)


def test_a_single_pass_has_the_spread_of_its_windows() -> None:
    (level,) = summarise_levels(record(result()))
    assert level.spread == pytest.approx(0.04)
    assert level.p99_spread == pytest.approx(0.1)


def test_one_unstable_pass_makes_the_level_unstable() -> None:
    passes = [result(), result(repeat=1, reading=reading(delayed=0.5))]
    assert not summarise_levels(record(*passes))[0].stable


def test_models_loads_and_the_search_stay_apart_and_failures_are_left_out() -> None:
    results = [
        result(), result(value=2), result("codetr_detector"), result(mode="rate", value=50),
        result(mode="rate", value=40, search=True), result(value=8, reading=None, error="failed"),
    ]  # fmt: skip
    keys = [level.key for level in summarise_levels(record(*results))]
    assert keys == [
        ("codetr", "concurrency", 1), ("codetr", "concurrency", 2), ("codetr_detector", "concurrency", 1),
        ("codetr", "rate", 50),
    ]  # fmt: skip
    assert [level.value for level in summarise_levels(record(*results), search=True)] == [40]


def test_steps_and_gauges_are_averaged_over_the_passes_that_have_them() -> None:
    step = StepTime(3.0, 0.5, 8.0, 0.5, 2.0, 600, 0)
    passes = [result(), result(repeat=1, steps={"codetr_detector": step}, gauges={})]
    (level,) = summarise_levels(record(*passes))
    assert level.steps["codetr_detector"]["queue"] == 2.0
    assert level.steps["codetr_preprocess"]["queue"] == 1.0
    assert level.gauges == {"cpu_percent": 50.0}


@pytest.mark.parametrize(
    ("ratio", "spread", "higher_is_better", "expected"),
    [
        pytest.param(1.2, 0.1, True, "better", id="more images a second"),
        pytest.param(0.8, 0.1, True, "worse", id="fewer images a second"),
        pytest.param(0.8, 0.1, False, "better", id="shorter latency"),
        pytest.param(1.2, 0.1, False, "worse", id="longer latency"),
        pytest.param(1.2, 0.3, True, "no difference", id="within the spread"),
    ],
)
def test_verdict(ratio: float, spread: float, higher_is_better: bool, expected: str) -> None:
    assert verdict(ratio, spread, higher_is_better) == expected


def test_compare_takes_the_levels_of_both_runs_and_adds_their_spreads() -> None:
    new = summarise_levels(record(result(reading=reading(150, 10)), result(value=2)))
    old = summarise_levels(record(result(), result(value=4)))
    (comparison,) = compare(new, old)
    assert comparison.throughput_ratio == pytest.approx(1.5)
    assert comparison.p99_ratio == pytest.approx(0.5)
    assert comparison.spread == pytest.approx(4 / 100 + 4 / 100, abs=0.02)
    assert (comparison.throughput_verdict, comparison.p99_verdict) == ("better", "better")
