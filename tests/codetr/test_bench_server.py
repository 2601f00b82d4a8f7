from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perf.connection
import perf.server.perf_analyzer
import perf.server.run
from codetr import cli
from codetr.bench_server import parse_models, parse_rates
from codetr_client.errors import ServerUnreachableError
from perf.records import write_record
from perf.server.perf_analyzer import Installation
from perf.server.run import Plan
from serving.errors import CodetrError
from tests.perf.records import record, result


class StubConnection:
    is_encrypted = False

    def __init__(self, url: str | None, protocol: str, ensemble: str) -> None:
        self.address, self.protocol, self.ensemble = url or "localhost:8001", protocol, ensemble

    def __enter__(self) -> StubConnection:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def model_configs(self, models: tuple[str, ...]) -> dict[str, Any]:
        return {model: {} for model in models}


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Replaces server and perf_analyzer; the plans that were run."""
    seen: list[Plan] = []

    def run(bench: object, plan: Plan, output: Path, *rest: object) -> None:
        seen.append(plan)
        write_record(record(result(), plan=plan), output)

    monkeypatch.setattr(perf.connection, "Connection", StubConnection)
    monkeypatch.setattr(perf.server.perf_analyzer, "find", lambda: Installation(Path("pa"), ""))
    monkeypatch.setattr(perf.server.run, "ServerBench", lambda *arguments: None)
    monkeypatch.setattr(perf.server.run, "run", run)
    return seen


def run_command(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["bench", "server", *map(str, arguments)])


def test_options_become_the_plan(plans: list[Plan], tmp_path: Path) -> None:
    got = run_command(
        "--output", tmp_path, "--models", "codetr_detector,codetr", "--concurrency", "4,1", "--rates", "5,2.5",
        "--p99-limit-ms", 80, "--pictures", "64x48", "--batch", 2, "--repeats", 1, "--window", 0.5,
    )  # fmt: skip
    assert got.exit_code == 0, got.output
    assert plans == [Plan(("codetr", "codetr_detector"), (1, 4), (2.5, 5.0), 80.0, 1, 0.5, 2, ((64, 48),))]
    assert (tmp_path / "report.html").exists()


def test_a_baseline_is_read_before_anything_is_measured(plans: list[Plan], tmp_path: Path) -> None:
    assert isinstance(run_command("--baseline", tmp_path / "none.json").exception, CodetrError)
    assert not plans
    (tmp_path / "old.json").write_text(json.dumps(record(result())))
    assert run_command("--output", tmp_path, "--baseline", tmp_path / "old.json").exit_code == 0
    assert "Beside the baseline" in (tmp_path / "report.md").read_text()


def test_a_dead_server_is_the_connections_one_line(plans: list[Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*arguments: object) -> None:
        raise ServerUnreachableError("no server answers")

    monkeypatch.setattr(StubConnection, "model_configs", dead)
    assert isinstance(run_command().exception, ServerUnreachableError)


@pytest.mark.parametrize(
    ("options", "page"),
    [
        pytest.param(("--url", "gpu1:8001"), "http://gpu1:8002/metrics", id="of the server asked"),
        pytest.param(("--url", "gpu1:8001", "--metrics-url", "h:1"), "http://h:1/metrics", id="named"),
    ],
)
def test_gauges_are_those_of_the_server_that_is_measured(
    plans: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], page: str
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(perf.server.run, "ServerBench", lambda *arguments: seen.extend(arguments))
    assert run_command("--output", tmp_path, *options).exit_code == 0
    assert seen[2] == page


def test_models_keep_the_contracts_order() -> None:
    assert parse_models("all")[0] == "codetr"
    with pytest.raises(CodetrError, match="--models nope: expected some of codetr, codetr_preprocess"):
        parse_models("codetr,nope")


@pytest.mark.parametrize(
    ("text", "expected"), [("auto", None), ("none", ()), ("5,2.5", (2.5, 5.0))], ids=["auto", "none", "given"]
)
def test_rates(text: str, expected: tuple[float, ...] | None) -> None:
    assert parse_rates(text) == expected


@pytest.mark.parametrize("text", ["", "fast", "0", "5,-1", "nan", "5,inf"])
def test_wrong_rates_are_refused(text: str) -> None:
    with pytest.raises(CodetrError, match="expected numbers above 0"):
        parse_rates(text)


@pytest.mark.parametrize("option", [("--rates", "5"), ("--p99-limit-ms", "80")], ids=lambda option: option[0])
def test_what_loads_the_ensemble_alone_is_refused_without_it(
    plans: list[Plan], tmp_path: Path, option: tuple[str, str]
) -> None:
    got = run_command("--output", tmp_path, "--models", "codetr_detector", *option)
    assert isinstance(got.exception, CodetrError)
    assert "are of codetr alone, which --models leaves out" in str(got.exception)
    assert run_command("--output", tmp_path, "--models", "codetr_detector", "--rates", "none").exit_code == 0


def test_a_batch_that_a_model_does_not_take_is_refused(
    plans: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = {"codetr": {"max_batch_size": 8}, "codetr_detector": {"max_batch_size": 4}}
    monkeypatch.setattr(StubConnection, "model_configs", lambda *arguments: configs)
    got = run_command("--output", tmp_path, "--batch", 5)
    assert isinstance(got.exception, CodetrError)
    assert "batch 5: codetr_detector takes at most 4 images" in str(got.exception)
    assert run_command("--output", tmp_path, "--batch", 4).exit_code == 0
    assert len(plans) == 1


def test_perf_analyzer_is_not_sent_to_an_encrypted_address(
    plans: list[Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StubConnection, "is_encrypted", True)
    got = run_command("--output", tmp_path, "--url", "https://h:1")
    assert isinstance(got.exception, CodetrError)
    assert "--url https://h:1: perf_analyzer is given no TLS here" in str(got.exception)
    assert not plans
