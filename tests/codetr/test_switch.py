"""`codetr switch` and `codetr rollback` without a server; tests/e2e/test_switch.py has one."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from codetr.cli import app
from serving.errors import CodetrError
from tests.tiny_engine import write_tiny_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("codetr", "codetr.2", "small"):
        write_tiny_repository(tmp_path / "repository", name=name)
    return tmp_path / "repository"


def run(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_versions_are_listed_named_and_named_back(repository: Path) -> None:
    assert run("switch", repository) == "codetr: version 1 (served), 2 small: version 1 (served)"
    said = run("switch", repository, "--to", "2")
    assert "codetr: version 2 is served; the next start serves it" in said
    assert "codetr: version 1, 2 (served)" in run("switch", repository)
    assert "codetr: version 1 is served" in run("rollback", repository)


def test_what_is_no_repository_is_said(tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match=r"no repository at .*; write one there with `codetr build`"):
        run("switch", tmp_path)
