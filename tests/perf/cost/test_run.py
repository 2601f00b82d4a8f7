from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perf.cost.cases import Case, CostPlan, cases
from perf.cost.report import cost_sections, write_cost_report
from perf.cost.run import run
from perf.server.perf_analyzer import Level
from perf.server.run import Result
from serving.errors import CodetrError
from tests.perf.records import STEP, reading

PLAN = CostPlan(sizes=((64, 32),), batches=(1,), preprocess=(1, 2), concurrency=4, repeats=2)
STEPS = dict.fromkeys(("codetr", "codetr_preprocess", "codetr_detector", "codetr_postprocess"), STEP)


def measured(case: Case) -> Iterator[Result]:
    for repeat in range(PLAN.repeats):
        for load in (1, PLAN.concurrency):
            level = Level("codetr", "concurrency", load, case.batch, PLAN.window)
            yield Result(level, repeat, reading(throughput=20.0 * load, p50=42.0 + repeat), STEPS)


def test_a_run_leaves_json_markdown_and_a_page(tmp_path: Path) -> None:
    heard: list[Case] = []
    record = run(measured, PLAN, tmp_path, lambda case, result: heard.append(case))
    write_cost_report(record, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(record))
    assert (record["kind"], record["complete"]) == ("cost", True)
    assert list(dict.fromkeys(heard)) == cases(PLAN)
    markdown = (tmp_path / "report.md").read_text()
    # 42.5 ms at concurrency 1, 30 of them the engine's; of 50 ms on average, by 20 requests/s, 10 in each step
    assert "| gRPC | 42.5 ± 1% | 12.5 | +42% | 10.0 | 10.0 | 10.0 | 20.0 | 80.0 ± 0% | 2.0 | 20.0 |" in markdown
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 7
    assert not re.search(r"(src|href)=\"(?!#)", page), "nothing is loaded from elsewhere"


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    first, second = cases(PLAN)[:2]

    def cut(case: Case) -> Iterator[Result]:
        if case == second:
            raise KeyboardInterrupt
        return measured(case)

    record = run(cut, PLAN, tmp_path)
    assert not record["complete"]
    assert {result["case"] for result in record["results"]} == {first.name}
    write_cost_report(record, tmp_path)
    assert "The run was cut short" in (tmp_path / "report.md").read_text()


def test_a_level_that_failed_is_named_and_its_case_left_out(tmp_path: Path) -> None:
    def failing(case: Case) -> Iterator[Result]:
        for result in measured(case):
            yield replace(result, reading=None, error="no answer") if case.protocol == "http" else result

    sections = {section.title: section for section in cost_sections(run(failing, PLAN, tmp_path))}
    assert [row[0] for row in sections["Protocol"].rows] == ["gRPC"]
    assert [row[1] for row in sections["Levels that failed"].rows] == ["no answer"] * 4


def test_a_run_without_any_reading_is_its_first_error(tmp_path: Path) -> None:
    def failing(case: Case) -> Iterator[Result]:
        yield Result(Level("codetr", "concurrency", 1, 1, 1.0), 0, None, error="perf_analyzer failed (99)")

    with pytest.raises(CodetrError, match="perf_analyzer failed"):
        run(failing, PLAN, tmp_path)
