from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perf.cost.report
import perf.cost.run
import perf.cost.service
import perf.server.perf_analyzer
from codetr import cli
from perf.cost.cases import Case, CostPlan
from perf.records import write_record
from perf.server.perf_analyzer import Installation
from perf.server.run import Result
from serving.errors import CodetrError
from tests.perf.records import result

OPTIONS = ["--cost-ms", "12", "--sizes", "64x32", "--batches", "2,1", "--instances", "3", "--concurrency", "4"]


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replaces perf_analyzer and the report; what was reported, and where to."""
    seen: list[Any] = []
    monkeypatch.setattr(perf.server.perf_analyzer, "find", lambda: Installation(Path("pa"), ""))
    monkeypatch.setattr(perf.cost.report, "write_cost_report", lambda *arguments: seen.append(arguments))
    return seen


def replace_run(monkeypatch: pytest.MonkeyPatch, end: Callable[[], None]) -> list[CostPlan]:
    plans: list[CostPlan] = []

    def run(measure: object, plan: CostPlan, output: Path, on_result: Callable[[Case, Result], None]) -> None:
        plans.append(plan)
        write_record({"results": []}, output)
        on_result(Case(64, 32), result())
        end()

    monkeypatch.setattr(perf.cost.run, "run", run)
    return plans


def test_options_become_the_plan(reported: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plans = replace_run(monkeypatch, lambda: None)
    options = [*OPTIONS, "--repeats", "1", "--window", "0.5", "--output", str(tmp_path)]
    done = CliRunner().invoke(cli.app, ["bench", "cost", *options])
    assert done.exit_code == 0, done.output
    assert plans == [CostPlan(12, ((64, 32),), (1, 2), (3,), 4, 1, 0.5)]
    assert reported == [({"results": []}, tmp_path)]
    assert "case='64x32, batch 1, delay 0 ms" in done.output
    assert "images_per_s=100.00" in done.output


def test_a_server_that_dies_costs_no_figures(
    reported: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def die() -> None:
        raise RuntimeError("gone")

    replace_run(monkeypatch, die)
    done = CliRunner().invoke(cli.app, ["bench", "cost", *OPTIONS, "--output", str(tmp_path)])
    assert isinstance(done.exception, RuntimeError)
    assert reported == [({"results": []}, tmp_path)]


def test_a_repository_is_measured_instead(reported: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def measure(*arguments: Any) -> dict[str, Any]:
        asked.append(arguments[:5])
        arguments[5](result())
        return {}

    monkeypatch.setattr(perf.cost.service, "measure_service", measure)
    monkeypatch.setattr(perf.cost.service, "to_lines", lambda record: ["one request adds 5.00 ms", "eight at a time"])
    monkeypatch.setattr(perf.cost.run, "run", None)
    options = ["--repository", "r", "--model", "mine", "--window", "0.5", "--output", str(tmp_path)]
    done = CliRunner().invoke(cli.app, ["bench", "cost", *options])
    assert done.exit_code == 0, done.output
    assert asked == [(Path("r"), "mine", Installation(Path("pa"), ""), 0.5, tmp_path)]
    assert "images_per_s=100.00" in done.output
    assert "one request adds 5.00 ms\neight at a time\nwrote " in done.output


def test_a_batch_that_its_servers_do_not_take_is_refused(reported: list[Any], tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, ["bench", "cost", "--batches", "1,9", "--output", str(tmp_path)])
    assert isinstance(done.exception, CodetrError)
    assert "--batches 1,9: the servers measured take at most 8 images" in str(done.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(["--repository", "r", "--sizes", "64x64", "--cost-ms", "3"], "--cost-ms, --sizes: a", id="cases"),
        pytest.param(["--model", "mine"], "--model is of an engine in a --repository", id="no repository"),
    ],
)
def test_options_that_would_mean_nothing_are_refused(
    reported: list[Any], tmp_path: Path, options: list[str], message: str
) -> None:
    done = CliRunner().invoke(cli.app, ["bench", "cost", *options, "--output", str(tmp_path)])
    assert isinstance(done.exception, CodetrError)
    assert message in str(done.exception)
