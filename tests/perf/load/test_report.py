from __future__ import annotations

import json
from pathlib import Path

from perf.load.config import LoadConfig
from perf.load.limits import Sample
from perf.load.monitor import MemorySample, ProcessMemory
from perf.load.report import finish

STEP = ProcessMemory(60.0, 50.0)
SAMPLES = [
    *(Sample(i / 10, "jpeg 8x8", 10.0, "") for i in range(50)),
    Sample(2.0, "jpeg 8x8", 9000.0, "no <answer>"),
    Sample(3.0, "bad: text", 1.0, ""),
]
MEMORY = [
    MemorySample(float(i), 10 * i, {"server": ProcessMemory(120.0, 100.0 + i), "codetr_detector 0": STEP}, 4.0)
    for i in range(20)
]


def test_a_run_leaves_json_csv_markdown_and_a_page(tmp_path: Path) -> None:
    config = LoadConfig(
        "h:1", output=str(tmp_path / "out"), command="codetr bench load", seconds=5, max_memory_growth_mb=1.0
    )
    assert finish(config, SAMPLES, MEMORY) == [
        "1 failures are more than max_failures 0", "memory grew by 17 MB, more than max_memory_growth_mb 1",
    ]  # fmt: skip
    out = tmp_path / "out"
    record = json.loads((out / "results.json").read_text())
    assert (record["kind"], record["command"]) == ("load", "codetr bench load")
    assert record["outcome"]["requests"] == 52
    assert record["memory"]["growth_mb"] > 10
    assert len((out / "requests.csv").read_text().splitlines()) == 1 + 52
    markdown = (out / "report.md").read_text()
    assert "| jpeg 8x8 | 51 | 1 | 10.0 | 10.0 | 10.0 |" in markdown
    assert "Limits: 1 failures are more than max_failures 0;" in markdown
    assert "| codetr_detector 0 | 50.0 | 50.0 | 0.0 | 50.0 |" in markdown
    assert "| 4 | 10.4 ± " in markdown
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "no &lt;answer&gt;" in page


def test_a_run_that_was_cut_at_once_still_has_a_report(tmp_path: Path) -> None:
    assert finish(LoadConfig("h:1", output=str(tmp_path)), [], []) == ["no request was answered"]
    assert json.loads((tmp_path / "results.json").read_text())["memory"] is None
    assert "Memory" not in (tmp_path / "report.md").read_text()


def test_a_run_that_was_ended_before_its_time_says_so(tmp_path: Path) -> None:
    for is_complete in (True, False):
        finish(LoadConfig("h:1", output=str(tmp_path), max_failures=None), SAMPLES, [], is_complete)
        assert json.loads((tmp_path / "results.json").read_text())["complete"] is is_complete
        assert ("ended before its time" in (tmp_path / "report.md").read_text()) is not is_complete


def test_arrivals_are_described_as_what_they_are(tmp_path: Path) -> None:
    finish(LoadConfig("h:1", arrival="constant-rate", peak=9, output=str(tmp_path)), SAMPLES, [])
    assert "up to 9 requests a second arriving at random" in (tmp_path / "report.md").read_text()


def test_a_baseline_gives_ratios_and_verdicts(tmp_path: Path) -> None:
    old = LoadConfig("h:1", seconds=5, output=str(tmp_path / "old"), command="codetr bench load")
    finish(old, SAMPLES, [])
    baseline = str(tmp_path / "old" / "results.json")
    finish(LoadConfig("h:1", seconds=5, output=str(tmp_path / "new"), baseline=baseline), SAMPLES, [])
    markdown = (tmp_path / "new" / "report.md").read_text()
    (row,) = [line for line in markdown.splitlines() if line.startswith("| codetr closed 4 |")]
    assert row.count("no difference") == 2
    other = LoadConfig("h:1", peak=9, seconds=5, output=str(tmp_path / "other"), baseline=baseline)
    finish(other, SAMPLES, [])
    assert "no level in common" in (tmp_path / "other" / "report.md").read_text()
