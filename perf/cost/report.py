"""The server's cost as tables and plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf import plots
from perf.report import Section, failure_section, write_report
from perf.server.metrics import PHASES
from perf.summaries import LevelSummary, summarise_levels
from serving.contract import DETECTOR, STEPS

COLUMNS = (
    "p50 ms", "added ms", "added", "preprocess ms", "detector ms", "postprocess ms", "rest ms",
    "images/s", "mean batch", "p99 ms",
)  # fmt: skip


@dataclass(frozen=True)
class CaseSummary:
    """A case under its two loads: one request (of `batch` images) at a time, and many."""

    batch: int
    alone: LevelSummary
    loaded: LevelSummary

    @property
    def mean(self) -> float:
        """Mean latency of one request at a time, in milliseconds: the figure that goes with the steps' means."""
        return 1e3 * self.batch / self.alone.throughput


def write_cost_report(record: Mapping[str, Any], output: Path) -> None:
    """Write `report.html`, `report.md` and the plots as SVG files to `output`."""
    write_report("What the server adds to the detector", record, cost_sections(record), output)


def cost_sections(record: Mapping[str, Any]) -> list[Section]:
    """Return the report's sections: the method, a table and a plot for every group, and what failed."""
    summaries = summarise_cases(record)
    sections = [Section("How it was measured", _method(record))]
    for title, names in record["groups"].items():
        group = {value: summaries[name] for value, name in names.items() if name in summaries}
        if group:
            sections.append(_group_section(title, group, record["plan"]["cost_ms"]))
    if any(result["error"] for result in record["results"]):
        sections.append(failure_section(record))
    return sections


def summarise_cases(record: Mapping[str, Any]) -> dict[str, CaseSummary]:
    """Return the cases by name whose two loads were both measured."""
    summaries = {}
    for name, case in record["cases"].items():
        levels = summarise_levels({"results": [each for each in record["results"] if each["case"] == name]})
        by_load = {level.value: level for level in levels}
        if by_load.keys() >= {1, record["plan"]["concurrency"]}:
            summaries[name] = CaseSummary(case["batch"], by_load[1], by_load[record["plan"]["concurrency"]])
    return summaries


def _method(record: Mapping[str, Any]) -> str:
    plan = record["plan"]
    cut = "" if record["complete"] else " The run was cut short: cases are missing."
    base = next(iter(record["groups"]["Protocol"].values()))
    return (
        f"The engine takes {plan['cost_ms']:g} ms for every batch of up to {record['max_batch_size']} images and "
        "leaves the CPU free meanwhile, as a GPU does; one instance. All else is the repository that `codetr build` "
        "writes, on a real tritonserver, asked by perf_analyzer on the same machine. At concurrency 1: median latency, "
        "what it adds to the engine's cost, and the mean time in each step; rest is what remains of the mean latency, "
        "in the network, the ensemble and the client (a little below 0 at times: the server's means count the warm-up "
        f"too). At concurrency {plan['concurrency']}: images/s, the detector's mean batch and p99. Medians over "
        f"{plan['repeats']} pass(es), ± half of (largest - smallest) / median. What is not named is as in the case "
        f"{base}.{cut}"
    )


def _group_section(title: str, group: Mapping[str, CaseSummary], cost_ms: float) -> Section:
    rows = [[value, *_row(summary, cost_ms)] for value, summary in group.items()]
    figure = plots.step_stack([each.alone for each in group.values()], f"{title}: concurrency 1", list(group))
    name = "steps-" + title.lower().replace(" ", "-")
    return Section(title, "", (title, *COLUMNS), rows, [(name, plots.svg(figure))])


def _row(summary: CaseSummary, cost_ms: float) -> list[str]:
    alone, loaded = summary.alone, summary.loaded
    added = alone.p50 - cost_ms
    steps = [sum(alone.steps.get(step, {}).get(phase, 0.0) for phase in PHASES) for step in STEPS]
    return [
        f"{alone.p50:.1f} ± {alone.p50_spread / 2:.0%}", f"{added:.1f}", f"{added / cost_ms:+.0%}",
        *(f"{step:.1f}" for step in steps), f"{summary.mean - sum(steps):.1f}",
        f"{loaded.throughput:.1f} ± {loaded.spread / 2:.0%}",
        f"{loaded.steps.get(DETECTOR, {}).get('batch', 0.0):.1f}", f"{loaded.p99:.1f}",
    ]  # fmt: skip
