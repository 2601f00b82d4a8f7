from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from codetr import cli
from perf.capacity import simulation
from serving.errors import CodetrError

RESULTS = Path(__file__).resolve().parents[2] / "perf" / "results" / "server-h200" / "results.json"


@pytest.fixture(autouse=True)
def _few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "_REQUESTS", 2000)


def test_one_line_a_rate_and_a_report(tmp_path: Path) -> None:
    options = ["--rate", "5,40", "--p99-ms", "120", "--price", "3", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, ["capacity", str(RESULTS), *options], catch_exceptions=False)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["rate=5", "rate=40"]
    assert "replicas=1 " in lines[0]
    assert "cost_hour=3 cost_million=166.7" in lines[0]
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["rate"] for row in record["results"]] == [5, 40]
    assert record["measured"]["command"].startswith("codetr bench server")
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.count("| 5 |") == 1
    assert "H200" in report
    assert (tmp_path / "out" / "servers.svg").exists()


@pytest.mark.parametrize("rate", ["", "a", "0", "-1", "1,inf", "1,,2"])
def test_a_rate_that_is_none_is_said(rate: str) -> None:
    with pytest.raises(CodetrError, match="expected numbers above 0, such as 100,1000"):
        CliRunner().invoke(cli.app, ["capacity", str(RESULTS), "--rate", rate, "--p99-ms", "9"], catch_exceptions=False)
