from __future__ import annotations

import pytest

from perf.load.config import LoadConfig
from perf.load.levels import load_levels
from perf.load.limits import Sample
from perf.load.shapes import Shape
from perf.report import comparison_row
from perf.summaries import compare, summarise_levels


def steady(count: int = 300, rate: float = 10.0, milliseconds: float = 20.0) -> list[Sample]:
    return [Sample((index + 1) / rate, "jpeg 8x8", milliseconds, "") for index in range(count)]


@pytest.mark.parametrize(
    ("shape", "loads"),
    [
        pytest.param("constant", [10], id="one load"),
        pytest.param("soak", [10], id="the ramp is no load of its own"),
        pytest.param("steps", [2, 4, 6, 8, 10], id="every step"),
        pytest.param("spike", [2.5, 10], id="calm before and after is one load"),
    ],
)
@pytest.mark.parametrize("length", [{"seconds": 30.0}, {"requests": 300}], ids=["by time", "by requests"])
def test_every_load_of_a_shape_is_a_level(shape: Shape, loads: list[float], length: dict) -> None:
    levels = load_levels(steady(), LoadConfig("h:1", shape=shape, peak=10, **length))
    assert [level["value"] for level in levels] == loads
    for level in levels:
        assert level["reading"]["throughput"] == pytest.approx(10, rel=0.06)
        assert len(level["reading"]["windows"]) == 3
        assert (level["model"], level["mode"]) == ("codetr", "closed")


def test_failures_and_bad_images_have_no_latency_and_failures_are_no_answers() -> None:
    extra = [Sample(5.0, "jpeg 8x8", 9e3, "no answer"), Sample(15.0, "bad: text", 0.1, "")]
    (level,) = load_levels([*steady(), *extra], LoadConfig("h:1", seconds=30))
    assert level["reading"]["p99"] == 20
    assert level["reading"]["throughput"] == pytest.approx(301 / 30, rel=0.01)


def test_a_run_cut_short_has_the_loads_that_it_finished() -> None:
    config = LoadConfig("h:1", shape="steps", peak=10, seconds=60)
    assert [level["value"] for level in load_levels(steady(250), config)] == [2, 4]
    assert load_levels([], config) == []
    assert load_levels([Sample(1.0, "jpeg 8x8", 1.0, "late")], LoadConfig("h:1", requests=1)) == []


def test_runs_compare_as_sweeps_do() -> None:
    config = LoadConfig("h:1", peak=4, seconds=30)
    old, new = ({"results": load_levels(each, config)} for each in (steady(), steady(600, 20.0, 40.0)))
    (comparison,) = compare(summarise_levels(new), summarise_levels(old))
    name, ratio, _, verdict, p99_ratio, _, p99_verdict = comparison_row(comparison)
    assert (name, ratio, verdict) == ("codetr closed 4", "2.00", "better")
    assert (p99_ratio, p99_verdict) == ("2.00", "worse")
