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


@pytest.mark.parametrize("words", [("switch",), ("switch", "--to", 1), ("rollback",)], ids=lambda words: words[-1])
def test_what_is_no_repository_is_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(CodetrError, match=r"no repository at .*; write one there with `codetr build`"):
        run(*words, tmp_path)


@pytest.mark.parametrize(
    "content",
    [pytest.param("nonsense", id="damaged"), pytest.param('{"version": 3}', id="of a version that was removed")],
)
def test_a_version_that_is_named_is_the_way_out_of_a_file_that_names_none(repository: Path, content: str) -> None:
    (repository / "codetr.version").write_text(content)
    for words in ("switch", "rollback"):
        with pytest.raises(CodetrError, match="name one with `codetr switch`"):
            run(words, repository)
    with pytest.raises(CodetrError, match="has no version 4 of codetr"):
        run("switch", repository, "--to", "4")
    assert (repository / "codetr.version").read_text() == content
    run("switch", repository, "--to", "2")
    assert "codetr: version 1, 2 (served)" in run("switch", repository)
    with pytest.raises(CodetrError, match="no version of codetr was served before version 2"):
        run("rollback", repository)
