from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from codetr.cli import app
from perf.fuzz import run, server


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", "fuzz", *arguments])


def test_the_seed_is_printed_and_makes_the_same_files_again(tmp_path: Path) -> None:
    result = invoke("--files", "12", "--requests", "0", "--output", str(tmp_path / "first"))
    assert result.exit_code == 0, result.output
    seed = result.output.split()[1]
    assert (
        invoke("--files", "12", "--requests", "0", "--seed", seed, "--output", str(tmp_path / "again")).exit_code == 0
    )
    first, again = (json.loads((tmp_path / name / run.RECORD).read_text()) for name in ("first", "again"))
    for form, counts in first["formats"].items():
        assert counts["refused_by_message"] == again["formats"][form]["refused_by_message"]


def test_a_fault_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run", lambda *arguments, **options: {"faults": 2})
    monkeypatch.setattr(server, "run_through_server", lambda *arguments, **options: {"faults": 1})
    result = invoke("--seed", "1", "--output", str(tmp_path))
    assert "3 faults" in str(result.exception)


@pytest.mark.parametrize("name", [run.RECORD, server.RECORD])
def test_a_record_of_somebody_else_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module, function in ((run, "run"), (server, "run_through_server")):
        monkeypatch.setattr(module, function, lambda *arguments, **options: pytest.fail("a run began"))
    (tmp_path / name).write_text("precious")
    assert f"has {name}, but not from an earlier run" in str(invoke("--output", str(tmp_path)).exception)
    assert (tmp_path / name).read_text() == "precious"
