from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from codetr.cli import app
from demo.train import recipes


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the training was asked for; its time is up at once."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(recipes, "train_demo", lambda *arguments, **options: seen.update(options))
    return seen


def run(output: Path, *words: object) -> Result:
    return CliRunner().invoke(app, ["train-demo", "--device", "cpu", "--output", str(output), *map(str, words)])


@pytest.mark.parametrize(("cores", "workers"), [({3, 5}, 2), (set(range(64)), 15)])
def test_no_more_processes_draw_than_there_are_cores(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: set[int], workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores)
    assert run(tmp_path).exit_code == 0
    assert (asked["workers"], asked["minutes"]) == (workers, math.inf)
    assert run(tmp_path, "--workers", 0, "--minutes", 1.5).exit_code == 0
    assert (asked["workers"], asked["minutes"]) == (0, 1.5)


def test_minutes_in_which_no_step_ends_are_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    result = run(tmp_path, "--minutes", 0)
    assert (result.exit_code, asked) == (2, {})
    assert "greater than or equal to 1" in " ".join(result.output.split())
