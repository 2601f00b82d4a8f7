from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from codetr.cli import app
from codetr.status import _number, shown
from perf import status as state
from perf.status import EngineStatus, GpuStatus, ModelStatus, Status, StepStatus
from serving.errors import CodetrError
from serving.launch import free_ports

IDLE = StepStatus(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
BUSY = StepStatus(20, 0, 40, 1.25, 0.5, 30.75, 0.25, 2.0)
SERVER = Status(
    address="localhost:8000",
    server="triton",
    version="2.51.0",
    ready=True,
    faults=[],
    seconds=2.0,
    engines=[
        EngineStatus(
            "codetr",
            {"variant": "co_[demo] :dog: \x1b[1m", "engine": "onnx"},
            [ModelStatus("codetr_detector", replace(BUSY, requests=99, failures=3), BUSY, 7)],
            {"damaged": 5, "empty": 1},
        )
    ],
    gpus=[GpuStatus("GPU-1", 0.5, 2**30, 4 * 2**30, 70.4)],
    notes=["something is not shown"],
)


def printed(status: Status) -> str:
    console = Console(width=80, highlight=False)
    with console.capture() as capture:
        console.print(shown(status))
    return capture.get()


def test_a_healthy_server() -> None:
    text = printed(SERVER)
    assert "triton 2.51.0 at localhost:8000: ready, every engine answers" in text
    assert "codetr: variant co_[demo] :dog: \\x1b[1m, engine onnx" in text
    (row,) = [line for line in text.splitlines() if "detector" in line]
    assert row.split() == ["detector", "20.0", "1.25", "0.50", "30.75", "0.25", "2.0", "7", "99", "3"]
    assert "refused images: 5 damaged, 1 empty" in text
    assert "GPU GPU-1, 50% busy, 1.0 of 4.0 GiB, 70 W" in text
    assert "something is not shown" in text


@pytest.mark.parametrize(
    ("version", "loading", "title"),
    [("2", "", "codetr version 2: variant"), ("2", "3", "codetr version 2 (version 3 is loaded beside it): variant")],
)
def test_the_version_is_shown(version: str, loading: str, title: str) -> None:
    steps = [replace(SERVER.engines[0].models[0], name="codetr.12_postprocess")]
    engine = replace(SERVER.engines[0], version=version, loading=loading, models=steps)
    text = printed(replace(SERVER, engines=[engine]))
    assert title in text
    headings = ("img/s", "queue", "output", "done", "failed")
    assert all(heading in text for heading in headings), "names of versions leave room"


def test_an_idle_engine_shows_what_it_took_before() -> None:
    model = replace(SERVER.engines[0].models[0], since_start=replace(BUSY, queue_ms=9.5), lately=IDLE)
    text = printed(replace(SERVER, engines=[replace(SERVER.engines[0], models=[model])]))
    (row,) = [line for line in text.splitlines() if "detector" in line]
    assert row.split()[1:3] == ["0.0", "9.50"]


# What a server shows that has run for months under load, with models of long names.
HUGE = StepStatus(9_999_999, 99_999, 10**9, 99_999.4, 99_999.4, 1e9, 999.99, 4096.0)


@pytest.mark.parametrize("seconds", [None, 123456.7])
def test_nothing_of_a_row_is_cut_off_at_80_columns(seconds: float | None) -> None:
    name = "an-engine-whose-name-has-no-end-" * 3
    models = [ModelStatus(f"{name}{step}", HUGE, HUGE, 99_999) for step in ("", "_preprocess", "_postprocess")]
    engine = EngineStatus(name, {"variant": "v" * 100}, models, {})
    text = printed(replace(SERVER, engines=[engine], seconds=seconds))
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    heading = "step img/s queue input infer output batch waits done failed"
    assert [line.split() for line in text.splitlines()].count(heading.split()) == 1
    rows = [line.split() for line in text.splitlines() if line.startswith(("all ", "preprocess ", "postprocess "))]
    rate = [] if seconds is None else ["8100.0"]
    times = ["99999", "99999", "1000M", "999.99", "4096.0"]
    assert [row[1:] for row in rows] == [[*rate, *times, "99999", "9999999", "99999"]] * 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0.00"),
        (999.89, "999.89"),
        (999.999, "1000"),
        (99_999.4, "99999"),
        (99_999.6, "100k"),
        (99_999_999, "100M"),
        (2e14, "200T"),
    ],
)
def test_numbers_take_six_characters(value: float, expected: str) -> None:
    assert _number(value, 2) == expected


def test_in_a_pipe_each_sentence_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    long = ("word " * 60).strip()
    monkeypatch.setattr(state, "check", lambda address, model: [])
    monkeypatch.setattr(state, "read", lambda address, model: None)
    monkeypatch.setattr(state, "status", lambda *readings: replace(SERVER, notes=[long]))
    for columns in ("40", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        lines = status("--seconds", "0.1").output.splitlines()
        assert lines[-1] == long
        assert max(map(len, lines[:-1])) < 100


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"faults": ["codetr cannot answer: it"]}, "ready, but not every engine answers", id="dead step"),
        pytest.param({"ready": False}, "localhost:8000: not ready", id="loading"),
        pytest.param({"faults": None}, "localhost:8000: ready\n", id="nobody asked"),
    ],
)
def test_the_state_is_told_in_words(change: dict[str, Any], expected: str) -> None:
    text = "\n".join(line.rstrip() for line in printed(replace(SERVER, **change)).splitlines())
    assert expected in text
    assert all(fault in text for fault in change.get("faults") or [])


def status(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["status", *arguments])


@pytest.mark.parametrize(("faults", "expected"), [([], 0), (["codetr cannot answer: it"], 1)])
def test_the_check_is_an_exit_status(faults: Sequence[str], expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "check", lambda address, model: faults)
    done = status("--check")
    assert (done.exit_code, done.output) == (expected, "")
    if faults:
        assert isinstance(done.exception, CodetrError)  # which `main` prints
        assert str(done.exception) == "codetr cannot answer: it"


def test_the_check_of_nobody_fails() -> None:
    done = status("--check", "--url", f"127.0.0.1:{free_ports(1)[0]}", "--timeout", "1")
    assert done.exit_code == 1
    assert "no server answers HTTP" in str(done.exception)


def test_watching_goes_on_while_the_server_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([CodetrError("no server answers"), SERVER, KeyboardInterrupt()])

    def read(address: Any, model: Any) -> Any:
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(state, "read", read)
    monkeypatch.setattr(state, "status", lambda now, address, before=None, faults=None: now)
    done = status("--watch", "--json", "--seconds", "0.1", "--url", "localhost:8000")
    assert done.exit_code == 0
    first, second = map(json.loads, done.output.splitlines())
    assert first == {"address": "localhost:8000", "error": "no server answers"}
    assert second["version"] == "2.51.0"
