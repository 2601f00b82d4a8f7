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
    monkeypatch.setattr(perf.load.run, "run", lambda *arguments: seen.append(arguments))
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
