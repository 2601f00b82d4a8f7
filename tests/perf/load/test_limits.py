from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from perf.load.config import LoadConfig
from perf.load.limits import Sample, outcome, over_time, write_samples

SAMPLES = [Sample(second=i / 10, name="jpeg", milliseconds=float(i + 1), error="") for i in range(100)]
FAILED = Sample(5.0, "jpeg", 30_000.0, "no answer, within 30 s")
REFUSED = Sample(5.0, "bad: text", 0.1, "")


def test_percentiles_are_of_good_answers_to_good_images() -> None:
    result = outcome([*SAMPLES, FAILED, REFUSED])
    assert (result.requests, result.failures) == (102, 1)
    assert result.p50 == pytest.approx(50.5)
    assert result.p99 == pytest.approx(99.01)
    assert result.requests_per_s == pytest.approx(102 / 9.9)
    assert result.errors == {"no answer, within 30 s": 1}


@pytest.mark.parametrize(
    ("limits", "samples", "broken"),
    [
        pytest.param({"max_p99_ms": 100.0}, SAMPLES, [], id="kept"),
        pytest.param({"max_p99_ms": 50.0}, SAMPLES, ["p99 of 99.0 ms is above max_p99_ms 50"], id="too slow"),
        pytest.param({}, [*SAMPLES, FAILED], ["1 failures are more than max_failures 0"], id="a failure too many"),
        pytest.param({"max_failures": 1}, [*SAMPLES, FAILED], [], id="a failure allowed"),
        pytest.param({"max_failures": None}, [*SAMPLES, FAILED], [], id="any failure allowed"),
        pytest.param({}, [], ["no request was answered"], id="nothing happened"),
    ],
)
def test_limits(limits: dict, samples: list[Sample], broken: list[str]) -> None:
    assert outcome(samples).broken_limits(LoadConfig("h:1", **limits)) == broken


def test_a_p99_without_answers_breaks_its_limit() -> None:
    result = outcome([FAILED])
    assert math.isnan(result.p99)
    assert any("p99" in each for each in result.broken_limits(LoadConfig("h:1", max_p99_ms=10.0)))


def test_over_time_has_rates_and_percentiles_of_each_slice() -> None:
    series = over_time([*SAMPLES, FAILED], bins=10)
    assert len(series["requests/s"]) == 10
    assert sum(rate for _, rate in series["requests/s"]) * 9.9 / 10 == pytest.approx(101)
    assert sum(rate for _, rate in series["failures/s"]) * 9.9 / 10 == pytest.approx(1)
    assert series["p50"][0][1] < series["p50"][-1][1] < 101
    assert over_time([]) == {"requests/s": [], "failures/s": [], "p50": [], "p95": [], "p99": []}


def test_samples_are_written_as_csv(tmp_path: Path) -> None:
    write_samples([SAMPLES[3], FAILED], tmp_path / "requests.csv")
    with (tmp_path / "requests.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["second", "name", "milliseconds", "error"],
        ["0.3000", "jpeg", "4.000", ""],
        ["5.0000", "jpeg", "30000.000", "no answer, within 30 s"],
    ]
