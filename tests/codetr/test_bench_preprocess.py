from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perf.preprocess.run
from codetr import cli
from codetr.bench_preprocess import parse_counts, parse_size
from serving.errors import CodetrError


def test_options_reach_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(perf.preprocess.run, "run", lambda *arguments: seen.extend(arguments) or {"preprocess": []})
    options = ["--output", str(tmp_path), "--size", "608x512", "--formats", "png,jpeg", "--candidates", "300,100"]
    result = CliRunner().invoke(cli.app, ["bench", "preprocess", *options, "--seconds", "0.5"])
    assert result.exit_code == 0, result.output
    assert seen[:5] == [(608, 512), ["jpeg", "png"], [100, 300], 0.5, tmp_path]


def test_an_unknown_format_names_the_known_ones() -> None:
    result = CliRunner().invoke(cli.app, ["bench", "preprocess", "--formats", "jpeg,gif"])
    assert isinstance(result.exception, CodetrError)
    assert "--formats gif: expected some of jpeg, jpeg-progressive" in str(result.exception)


@pytest.mark.parametrize("size", ["1152", "1152x", "0x768", "axb", "-1x5", "1x2x3", "\u00b2x5"])
def test_a_wrong_size_is_refused(size: str) -> None:
    with pytest.raises(CodetrError, match=r"--pictures .*: expected WIDTHxHEIGHT"):
        parse_size("--pictures", size)


@pytest.mark.parametrize("size", ["65536x1", "1x65536", "8001x8000"])
def test_a_size_that_no_image_of_a_server_has_is_refused(size: str) -> None:
    assert parse_size("--sizes", "8000x8000") == (8000, 8000)
    with pytest.raises(CodetrError, match=f"--sizes {size}: expected sides of at most 65535 and 64000000 pixels"):
        parse_size("--sizes", size)


@pytest.mark.parametrize("counts", ["", "0", "1,,2", "1.5"])
def test_wrong_counts_are_refused(counts: str) -> None:
    with pytest.raises(CodetrError, match=r"--candidates .*: expected whole numbers above 0"):
        parse_counts("--candidates", counts)
