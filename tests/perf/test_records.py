from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from perf.records import DRAWN, check_output, reporting, write_record
from perf.report import load_record
from serving.errors import CodetrError


def test_a_run_that_fails_is_reported_with_what_it_measured(tmp_path: Path) -> None:
    reported: list[dict[str, Any]] = []

    def run() -> None:
        with reporting(tmp_path, "server", reported.append):
            write_record({"results": [1]}, tmp_path)
            raise RuntimeError("the server is gone")

    with pytest.raises(RuntimeError):
        run()
    assert reported == [{"results": [1]}]


def test_an_earlier_record_is_not_taken_for_this_runs(tmp_path: Path) -> None:
    write_record({"results": ["old"]}, tmp_path)
    with reporting(tmp_path, "server", lambda record: pytest.fail("nothing was measured")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_is_no_number_is_null(tmp_path: Path) -> None:
    write_record({"outcome": {"p99": float("nan")}, "windows": [(1.5, float("inf"))]}, tmp_path)
    found = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert found == {"outcome": {"p99": None}, "windows": [[1.5, None]]}


def own(output: Path) -> None:
    write_record({"kind": "server"}, output)
    (output / "report.md").write_text("of that run")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("results.json", '{"my": "results"}', id="another record"),
        pytest.param("results.json", "no JSON", id="no JSON"),
        pytest.param("report.md", "my report", id="a report without a record"),
    ],
)
def test_a_file_that_no_run_wrote_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CodetrError, match=f"has {re.escape(name)}, but not from an earlier run"):
        check_output(tmp_path)


def test_the_record_of_another_command_is_not_replaced(tmp_path: Path) -> None:
    own(tmp_path)
    check_output(tmp_path, kind="server")
    with pytest.raises(CodetrError, match=r"has results\.json, report\.md, but not from an earlier run of this kind"):
        check_output(tmp_path, kind="load")


@pytest.mark.parametrize("name", ["latency.svg", "my.csv", "csv", "inputs"])
def test_drawings_beside_no_record_are_somebody_elses(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    check_output(tmp_path)  # a run that draws none
    with pytest.raises(CodetrError, match=f"has {re.escape(name)}, but not from an earlier run"):
        check_output(tmp_path, others=DRAWN)
    own(tmp_path)
    check_output(tmp_path, others=DRAWN)


def test_an_earlier_run_may_be_replaced_but_not_the_baseline(tmp_path: Path) -> None:
    check_output(tmp_path / "new")
    own(tmp_path)
    check_output(tmp_path)
    (tmp_path / "baseline.json").hardlink_to(tmp_path / "results.json")
    with pytest.raises(CodetrError, match=r"results\.json would be overwritten, but it is read"):
        check_output(tmp_path, sources=[None, tmp_path / "baseline.json"])


@pytest.mark.parametrize("name", ["results.json", "results.json/inner"])
def test_an_output_that_is_a_file_is_refused(tmp_path: Path, name: str) -> None:
    own(tmp_path)
    with pytest.raises(CodetrError, match="it is a file or lies in one"):
        check_output(tmp_path / name)


def test_an_interrupted_run_leaves_no_report_of_an_earlier_one(tmp_path: Path) -> None:
    own(tmp_path)
    with reporting(tmp_path, "server", lambda record: pytest.fail("nothing was measured")):
        pass
    check_output(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_drew_before_it_failed_is_known_by_the_next(tmp_path: Path) -> None:
    def run() -> None:
        with reporting(tmp_path, "server", lambda record: pytest.fail("nothing was measured")):
            (tmp_path / "inputs").mkdir()
            raise RuntimeError("the first level failed")

    with pytest.raises(RuntimeError):
        run()
    check_output(tmp_path, others=DRAWN, kind="server")
    with pytest.raises(CodetrError, match="no results of kind 'server'"):
        load_record(tmp_path / "results.json", "server")
