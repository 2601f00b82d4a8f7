from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perf.records import reporting, write_record


def test_a_run_that_fails_is_reported_with_what_it_measured(tmp_path: Path) -> None:
    reported: list[dict[str, Any]] = []

    def run() -> None:
        with reporting(tmp_path, reported.append):
            write_record({"results": [1]}, tmp_path)
            raise RuntimeError("the server is gone")

    with pytest.raises(RuntimeError):
        run()
    assert reported == [{"results": [1]}]


def test_an_earlier_record_is_not_taken_for_this_runs(tmp_path: Path) -> None:
    write_record({"results": ["old"]}, tmp_path)
    with reporting(tmp_path, lambda record: pytest.fail("nothing was measured")):
        pass
    assert list(tmp_path.iterdir()) == []
