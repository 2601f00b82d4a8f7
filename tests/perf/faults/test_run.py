"""What is made of a run under faults; the run itself needs a server, and `make test-all` does one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perf.faults import run as faults
from perf.faults.run import Answer, Flooded, Killed, _last_error


def test_whole_is_counted_from_the_last_failure_and_a_service_without_one_is_whole() -> None:
    answers = [Answer(1, 2, None), Answer(2, 5, "dead"), Answer(2, 4, "dead"), Answer(5, 6, None)]
    assert _last_error(answers, 1.5) == 5
    assert _last_error(answers[:1], 1.5) == 1.5


@pytest.mark.server
@pytest.mark.slow
def test_each_step_gets_each_signal_and_a_flood_goes_by(tmp_path: Path) -> None:
    from tests.tiny_engine import write_tiny_repository

    cases: list[object] = []
    record = faults.run(write_tiny_repository(tmp_path / "repository"), tmp_path / "out", 1, cases.append)
    assert [type(case) for case in cases] == [Flooded] * 2 + [Killed] * 6 + [dict]
    assert {(each["step"], each["signal"]) for each in record["killed"]} == {
        (f"codetr_{step}", name)
        for step in ("preprocess", "detector", "postprocess")
        for name in ("SIGKILL", "SIGSTOP")
    }
    assert all(
        each["answered"] > 0 or step == "codetr_detector" for each in record["killed"] for step in [each["step"]]
    )
    assert record["stop"]["status"] == 0
    assert json.loads((tmp_path / "out" / "faults.json").read_text()) == json.loads(json.dumps(record))
