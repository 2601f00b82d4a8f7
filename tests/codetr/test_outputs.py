"""An output that cannot be a folder ends every command with one line, before it loads, asks or draws anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codetr import cli
from codetr_client.outputs import check_folder, make_folder
from serving.errors import CodetrError

# Their other arguments would all be refused later, or take minutes.
COMMANDS = {
    "detect": ["missing.jpg", "--output"],
    "build": ["co_dino_demo", "--random-weights", "--repository"],
    "build, its report": ["co_dino_demo", "--random-weights", "--repository", "none", "--report"],
    "verify": ["none", "--report"],
    "demo": ["--output"],
    "demo-data": ["--output"],
    "train-demo": ["--device", "cpu", "--output"],
    "bench preprocess": ["--output"],
    "bench cost": ["--output"],
    "bench op": ["--output"],
    "bench load": ["--output"],
    "bench server": ["--output"],
    "bench faults": ["--repository", "none", "--output"],
    "bench surroundings": ["--repository", "none", "--output"],
    "bench fuzz": ["--output"],
    "bench fuzz, what it keeps": ["--output", "new", "--files", "0", "--requests", "0", "--keep"],
    "bench install-perf-analyzer": ["--folder"],
    "evaluate": ["--annotations", "none", "--images", "none", "--output"],
    "bench engine": ["co_dino_demo", "--random-weights", "--output"],
    "compare": ["none", "--output"],
    "inspect": ["none", "--output"],
}


@pytest.mark.parametrize("inner", ["", "inner", "inner/folder"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_is_a_file_or_lies_in_one_is_refused(
    command: str, inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("precious")
    output = tmp_path / "file" / inner
    result = CliRunner().invoke(cli.app, [*command.split(",")[0].split(), *COMMANDS[command], str(output)])
    assert isinstance(result.exception, CodetrError), result.output
    assert str(result.exception) == (f"output {output}: it is a file or lies in one; expected a folder, name another")
    assert (tmp_path / "file").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir() if path.name != "new"] == ["file"]


@pytest.mark.parametrize("inner", ["", "inner/folder"])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_may_not_be_written_is_refused(
    command: str, inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some computed for minutes before they found out; `verify` put its report elsewhere, and did not say so."""
    monkeypatch.chdir(tmp_path)
    locked = tmp_path / "locked"
    locked.mkdir()
    allowed = os.access
    # root may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: allowed(path, mode) and not _writes(path, mode, locked))
    output = locked / inner
    result = CliRunner().invoke(cli.app, [*command.split(",")[0].split(), *COMMANDS[command], str(output)])
    assert isinstance(result.exception, CodetrError), result.output
    assert str(result.exception) == f"output {output}: nothing can be written in {locked}; name another folder"
    assert list(locked.iterdir()) == []


def _writes(path: str | Path, mode: int, folder: Path) -> bool:
    return bool(mode & os.W_OK) and Path(path) == folder


@pytest.mark.parametrize("inner", ["", "inner/folder"])
def test_a_folder_that_may_not_be_written_is_refused_before_anything_is_measured(
    inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut, access = tmp_path / "shut", os.access
    shut.mkdir()

    def may(path: str | Path, mode: int) -> bool:
        return access(path, mode) and not (mode & os.W_OK and Path(path) == shut)

    monkeypatch.setattr(os, "access", may)  # to root nothing is shut
    for check in (check_folder, make_folder):
        check(tmp_path / "open" / "inner")
        with pytest.raises(CodetrError) as refused:
            check(shut / inner)
        assert str(refused.value) == f"output {shut / inner}: nothing can be written in {shut}; name another folder"
    result = CliRunner().invoke(cli.app, ["bench", "preprocess", "--output", str(shut / inner)])
    assert isinstance(result.exception, CodetrError), result.output
    assert list(shut.iterdir()) == []
