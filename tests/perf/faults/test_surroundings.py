from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codetr.cli import app
from perf.faults import surroundings
from perf.faults.before import Ended, Fair, SlowFlood
from tests.tiny_engine import write_tiny_repository


def test_parts_that_are_not_known_are_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "surroundings", "-r", str(tmp_path), "--parts", "ends,noise"])
    assert str(result.exception) == "parts: noise is not known; expected fairness, floods, ends, places, damages"


@pytest.mark.server
@pytest.mark.slow
def test_large_neighbours_floods_and_ends_are_recorded(tmp_path: Path) -> None:
    repository, cases = write_tiny_repository(tmp_path / "repository"), list[object]()
    record = surroundings.run(repository, tmp_path, ["fairness", "floods", "ends"], 1.0, cases.append)
    assert [type(case) for case in cases] == [Fair] * 6 + [SlowFlood] * 2 + [Ended] * 6
    assert all(each["small_answered"] for each in record["fairness"])
    bound, unbound = (each["flood"] for each in record["floods"])
    assert bound["computed"] < unbound["computed"] == 16
    assert bound["seconds_to_next"] < unbound["seconds_to_next"]
    ours = [each for each in record["ends"] if each["ended_by"] == "codetr serve"]
    assert [each["status"] for each in ours] == [0, 0, 0]
    assert json.loads((tmp_path / "surroundings.json").read_text()) == json.loads(json.dumps(record))
