from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from perf.report import load_record, server_sections, write_server_report
from perf.server.perf_analyzer import Level
from perf.server.run import Plan, Result
from serving.errors import CodetrError
from tests.perf.records import reading, record, result


@pytest.fixture
def full() -> dict:
    results = [
        result(model, value, repeat=repeat, reading=reading(100.0 * value, 20.0 * value, p50=latency * value))
        for repeat in range(2)
        for model, latency in (("codetr", 12.0), ("codetr_detector", 10.0))
        for value in (1, 2)
    ]
    rate = result(mode="rate", value=50, search=True)
    failed = Result(Level("codetr", "concurrency", 64, 1, 2.0), 0, None, error="perf_analyzer failed (2): <full>")
    return record(*results, result(mode="rate", value=70), rate, failed, plan=Plan(p99_limit=25.0))


def titles(record: dict, baseline: dict | None = None) -> list[str]:
    return [section.title for section in server_sections(record, baseline)]


def test_a_full_record_has_every_section(full: dict) -> None:
    assert titles(full, full) == [
        "How it was measured", "Beside the baseline", "codetr under concurrency", "codetr_detector under concurrency",
        "What the ensemble adds to the detector", "Time by step", "codetr under Poisson arrivals",
        "Highest rate within the latency limit", "Levels that failed",
    ]  # fmt: skip


def test_a_record_of_one_step_has_only_what_it_can_show() -> None:
    assert titles(record(result("codetr_detector", steps={}, gauges={}))) == [
        "How it was measured", "codetr_detector under concurrency",
    ]  # fmt: skip


def test_the_page_opens_without_a_network(full: dict, tmp_path: Path) -> None:
    write_server_report(full, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!#)", page), "nothing is loaded from elsewhere"
    assert set(re.findall(r"https?://([^/\"]+)", page)) == {"www.w3.org"}, "names of XML vocabularies only"
    assert page.count("<svg") == 6
    assert "CPU &amp; Co" in page
    assert "&lt;full&gt;" in page


def test_the_markdown_names_its_plots(full: dict, tmp_path: Path) -> None:
    write_server_report(full, tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    drawings = re.findall(r"!\[[^]]*\]\(([^)]*)\)", markdown)
    assert drawings
    for name in drawings:
        ElementTree.parse(tmp_path / name)
    assert "| 2 | 200.0 ± 0% | 24.0 | 18.0 | 40.0 ± 0% | yes |" in markdown
    assert "| 2 | 24.0 | 20.0 | +20% | +0% |" in markdown
    assert "Highest Poisson rate with p99 within 25 ms: 50 requests/s." in markdown
    assert "windows differ by at most 10% in throughput and 25% in p99" in markdown


def test_the_same_record_gives_the_same_files(full: dict, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_server_report(full, tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_cut_run_says_so(tmp_path: Path) -> None:
    write_server_report(record(result(), complete=False), tmp_path)
    assert "The run was cut short" in (tmp_path / "report.md").read_text()


def test_a_baseline_gives_ratios_spreads_and_verdicts(tmp_path: Path) -> None:
    new, old = record(result(reading=reading(150.0, 40.0))), record(result())
    write_server_report(new, tmp_path, old)
    row = next(line for line in (tmp_path / "report.md").read_text().splitlines() if "concurrency 1" in line)
    assert row.startswith("| codetr concurrency 1 | 1.50 |")
    assert "better" in row
    assert "| 2.00 |" in row
    assert row.endswith("worse |")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "cannot read the results", id="no such file"),
        pytest.param("{", "cannot read the results", id="not JSON"),
        pytest.param('{"kind": "load"}', "no results of kind 'server'", id="another kind"),
        pytest.param("[]", "no results of kind 'server'", id="another shape"),
    ],
)
def test_a_wrong_baseline_is_a_one_line_error(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "old.json").write_text(content)
    with pytest.raises(CodetrError, match=message):
        load_record(tmp_path / "old.json", "server")


def test_a_record_survives_its_file(full: dict, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(full))
    write_server_report(load_record(tmp_path / "results.json", "server"), tmp_path / "from file")
    write_server_report(full, tmp_path / "direct")
    assert (tmp_path / "from file" / "report.md").read_text() == (tmp_path / "direct" / "report.md").read_text()


def test_what_a_server_said_is_shown_as_it_is_in_both_forms(tmp_path: Path) -> None:
    said = "queue | full <b>[x](y)</b>\n\x1b[31m"
    failed = record(result(), result(value=4, error=said))
    write_server_report(failed, tmp_path)
    cell = r"queue \| full \<b\>\[x\](y)\</b\>\\n\\x1b\[31m"
    assert f" | {cell} |\n" in (tmp_path / "report.md").read_text()
    assert "queue | full &lt;b&gt;[x](y)&lt;/b&gt;" in (tmp_path / "report.html").read_text()
