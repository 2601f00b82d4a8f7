from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perf.load.run
from codetr import cli
from perf.load.config import LoadConfig


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(perf.load.run, "run", lambda *arguments: seen.append(arguments) or True)
    return seen


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["bench", "load", *map(str, arguments)])


def test_options_become_the_settings(runs: list[Any], tmp_path: Path) -> None:
    result = invoke(
        "--output", tmp_path, "--url", "h:1", "--protocol", "http", "--arrival", "constant-rate", "--shape", "spike",
        "--peak", 9, "--seconds", 30, "--bad-share", 0.1, "--max-p99-ms", 80, "--max-failures", 3, "--web",
        "--", "--master", "--expect-workers", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ((config, web, locust_options),) = runs
    assert isinstance(config, LoadConfig)
    assert (config.url, config.protocol, config.arrival, config.shape) == ("h:1", "http", "constant-rate", "spike")
    assert (config.peak, config.seconds, config.bad_share) == (9, 30, 0.1)
    assert (config.max_p99_ms, config.max_failures, config.output) == (80, 3, str(tmp_path))
    assert web
    assert locust_options == ["--master", "--expect-workers", "2"]


def test_any_number_of_failures_can_be_allowed(runs: list[Any]) -> None:
    invoke("--max-failures", -1)
    assert runs[0][0].max_failures is None


def test_without_a_url_it_is_tritons_port_here(runs: list[Any]) -> None:
    invoke("--protocol", "http")
    assert runs[0][0].url == "localhost:8000"


def test_a_worker_does_not_speak_of_limits(runs: list[Any]) -> None:
    assert "limits" in invoke().output
    assert "limits" not in invoke("--", "--worker").output


def test_a_run_that_was_ended_before_its_time_has_not_kept_all_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perf.load.run, "run", lambda *arguments: False)
    output = invoke().output
    assert "ended before its time, limits kept until then" in output
    assert "all limits kept" not in output


def test_what_a_soak_needs_reaches_the_settings(runs: list[Any], tmp_path: Path) -> None:
    options = ["--requests", 25000, "--server-pid", 12, "--baseline", tmp_path / "old.json", "--output", tmp_path]
    result = invoke("--shape", "soak", *options)
    assert result.exit_code == 0, result.output
    config = runs[0][0]
    assert (config.requests, config.server_pid, config.baseline) == (25000, 12, str(tmp_path / "old.json"))


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        pytest.param([], None, id="only a soak has a limit by itself"),
        pytest.param(["--shape", "soak"], 100.0, id="a soak"),
        pytest.param(["--shape", "soak", "--max-memory-growth-mb", "-1"], None, id="a soak without"),
        pytest.param(["--max-memory-growth-mb", "7.5"], 7.5, id="given"),
    ],
)
def test_memory_limit(runs: list[Any], options: list[str], limit: float | None) -> None:
    assert invoke(*options).exit_code == 0
    assert runs[0][0].max_memory_growth_mb == limit
