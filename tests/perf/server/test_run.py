from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from codetr_client.errors import ServerUnreachableError
from perf.records import RESULTS_NAME
from perf.server import perf_analyzer
from perf.server.perf_analyzer import Installation, Level
from perf.server.run import Plan, Result, ServerBench, highest_rate, run, sweep, widened
from serving.errors import CodetrError
from tests.perf.records import DESCRIPTION, reading, result


class RecordedBench:
    """Answers every level with `respond(level)`; remembers what it was asked."""

    def __init__(self, respond: Callable[[Level], Any]) -> None:
        self.respond = respond
        self.levels: list[tuple[str, str, float, int]] = []

    def measure(self, level: Level, repeat: int) -> Result:
        self.levels.append((level.model, level.mode, level.value, repeat))
        return Result(level, repeat, self.respond(level))


def saturating(level: Level) -> Any:
    """A server of 100 images/s whose p99 is 10 ms until 80 requests/s, and 100 ms beyond."""
    if level.mode == "concurrency":
        return reading(throughput=min(100.0, 40.0 * level.value))
    return reading(throughput=level.value, p99=10.0 if level.value <= 80 else 100.0)


SMALL = Plan(models=("codetr", "codetr_detector"), concurrencies=(1, 4), repeats=2)


def test_passes_go_over_all_levels_and_repeat_the_same_rates() -> None:
    bench = RecordedBench(saturating)
    results = list(sweep(bench, SMALL))
    first = [level[:3] for level in bench.levels if level[3] == 0]
    assert first == [
        ("codetr", "concurrency", 1), ("codetr", "concurrency", 4),
        ("codetr_detector", "concurrency", 1), ("codetr_detector", "concurrency", 4),
        ("codetr", "rate", 50.0), ("codetr", "rate", 70.0), ("codetr", "rate", 90.0),
    ]  # fmt: skip
    assert [level[:3] for level in bench.levels if level[3] == 1] == first
    assert len(results) == 14
    assert not any(each.search for each in results)


def test_given_rates_are_images_and_divided_by_the_batch() -> None:
    bench = RecordedBench(saturating)
    list(sweep(bench, Plan(models=("codetr",), concurrencies=(1,), rates=(8.0,), repeats=1, batch=4)))
    assert bench.levels[-1] == ("codetr", "rate", 2.0, 0)


@pytest.mark.parametrize("models", [("codetr_detector",)], ids=["the ensemble is not measured"])
def test_steps_alone_get_no_rates(models: tuple[str, ...]) -> None:
    bench = RecordedBench(saturating)
    list(sweep(bench, Plan(models=models, concurrencies=(1,), repeats=1, p99_limit=5.0)))
    assert [level[1] for level in bench.levels] == ["concurrency"]


def test_the_search_closes_in_on_the_highest_good_rate() -> None:
    bench = RecordedBench(saturating)
    plan = Plan(models=("codetr",), concurrencies=(4,), rates=(), repeats=1, p99_limit=15.0)
    results = list(sweep(bench, plan))
    assert 80 * 0.95 <= highest_rate(results, 15.0) <= 80
    assert sum(each.search for each in results) < 10


def test_the_search_ends_where_no_rate_is_good() -> None:
    bench = RecordedBench(lambda level: reading(p99=500.0))
    plan = Plan(models=("codetr",), concurrencies=(1,), rates=(), repeats=1, p99_limit=15.0)
    results = list(sweep(bench, plan))
    assert highest_rate(results, 15.0) == 0
    assert len(results) < 15


def test_the_highest_rate_is_no_higher_than_what_was_answered() -> None:
    level = Level("codetr", "rate", 50, 2, 2.0)
    assert highest_rate([Result(level, 0, reading(throughput=90.0, p99=1.0), search=True)], 15.0) == 45
    assert highest_rate([Result(level, 0, reading(throughput=110.0, p99=1.0), search=True)], 15.0) == 50


def test_a_rate_that_could_not_be_offered_is_not_good() -> None:
    late = Result(Level("codetr", "rate", 50, 1, 2.0), 0, reading(p99=1.0, delayed=0.5), search=True)
    assert highest_rate([late], 15.0) == 0


@pytest.mark.parametrize(
    ("changes", "stable"),
    [
        pytest.param({}, True, id="windows agree"),
        pytest.param({"windows": ((100.0, 20.0), (120.0, 20.0), (100.0, 20.0))}, False, id="throughput wanders"),
        pytest.param({"windows": ((100.0, 20.0), (100.0, 30.0), (100.0, 20.0))}, False, id="p99 wanders"),
        pytest.param({"delayed": 0.5}, False, id="the load was not the one asked for"),
    ],
)
def test_stability(changes: dict[str, Any], stable: bool) -> None:
    assert result(reading=reading(**changes)).stable is stable


def test_a_level_without_a_reading_is_not_stable() -> None:
    assert not result(reading=None, error="failed").stable


def test_the_record_is_complete_json(tmp_path: Path) -> None:
    record = run(RecordedBench(saturating), SMALL, tmp_path / "out", DESCRIPTION)
    written = json.loads((tmp_path / "out" / RESULTS_NAME).read_text())
    assert written == json.loads(json.dumps(record))
    assert written["complete"] is True
    assert len(written["results"]) == 14
    assert written["highest_rate"] is None
    assert not list((tmp_path / "out").glob("*.partial"))


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    def cut(level: Level) -> Any:
        if level.model == "codetr_detector":
            raise KeyboardInterrupt
        return reading()

    record = run(RecordedBench(cut), SMALL, tmp_path, DESCRIPTION)
    assert (record["complete"], len(record["results"])) == (False, 2)
    assert json.loads((tmp_path / RESULTS_NAME).read_text())["complete"] is False


def test_a_server_that_dies_leaves_the_levels_before(tmp_path: Path) -> None:
    def die(level: Level) -> Any:
        if level.model == "codetr_detector":
            raise ServerUnreachableError("gone")
        return reading()

    with pytest.raises(ServerUnreachableError):
        run(RecordedBench(die), SMALL, tmp_path, DESCRIPTION)
    assert len(json.loads((tmp_path / RESULTS_NAME).read_text())["results"]) == 2


def test_a_run_without_any_reading_is_its_first_error(tmp_path: Path) -> None:
    class Failing:
        def measure(self, level: Level, repeat: int) -> Result:
            return Result(level, repeat, None, error="perf_analyzer failed (99): no model")

    with pytest.raises(CodetrError, match="no model"):
        run(Failing(), Plan(repeats=1), tmp_path, DESCRIPTION)


class StubConnection:
    address, protocol = "h:1", "grpc"

    def statistics(self) -> dict[str, Any]:
        return {}

    def served_name(self, model: str) -> str:
        return model


@pytest.mark.parametrize("fails", [False, True])
def test_server_bench_gives_every_level_its_own_csv_and_survives_a_failed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    seen: list[Any] = []

    def measure(installation, level, url, protocol, inputs, csv_file):
        seen.extend((url, protocol, inputs, csv_file))
        if fails:
            raise CodetrError("perf_analyzer failed (2): saturated")
        return reading()

    monkeypatch.setattr(perf_analyzer, "measure", measure)
    page = "http://127.0.0.1:9/metrics"
    bench = ServerBench(Installation(Path("pa"), ""), StubConnection(), page, {"codetr": {}}, [(8, 8)], tmp_path)
    got = bench.measure(Level("codetr", "rate", 12.5, 1, 2.0), 1)
    csv_file = tmp_path / "csv" / "codetr-rate-12.5-1.csv"
    assert seen == ["h:1", "grpc", tmp_path / "inputs" / "codetr.json", csv_file]
    assert got.error == ("perf_analyzer failed (2): saturated" if fails else "")
    assert (got.reading is None) == fails


@pytest.mark.parametrize(
    ("rate", "window"),
    [
        pytest.param(100.0, 2.0, id="fast enough"),
        pytest.param(4.0, 5.0, id="20 requests take 5 s"),
        pytest.param(0.1, 30.0, id="never longer than half a minute"),
        pytest.param(0.0, 30.0, id="nothing finished"),
    ],
)
def test_slow_services_get_longer_windows(rate: float, window: float) -> None:
    assert widened(Level("codetr", "rate", rate, 1, 2.0), rate).window == window


def test_a_slow_level_is_measured_again_with_longer_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[float] = []

    def measure(installation, level, *rest):
        windows.append(level.window)
        if level.model == "codetr_detector" and len(windows) == 3:
            raise perf_analyzer.NothingFinishedError("no request finished")
        return reading(throughput=4.0)

    monkeypatch.setattr(perf_analyzer, "measure", measure)
    bench = ServerBench(Installation(Path("pa"), ""), StubConnection(), "http://127.0.0.1:9/", {}, [], tmp_path)
    bench._inputs = {"codetr": tmp_path, "codetr_detector": tmp_path}
    bench.measure(Level("codetr", "concurrency", 1, 1, 2.0), 0)
    bench.measure(Level("codetr_detector", "concurrency", 1, 1, 2.0), 0)
    assert windows == [2.0, 5.0, 2.0, 30.0]
