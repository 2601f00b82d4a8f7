"""A sweep's record as a report: one HTML page that opens without a network, and Markdown."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codetr_client.text import markdown
from perf import plots
from perf.machine import summary
from perf.records import MARK
from perf.summaries import Comparison, LevelSummary, compare, summarise_levels
from perf.tables import html_table, markdown_table
from serving import contract
from serving.errors import CodetrError

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
"""


@dataclass(frozen=True)
class Section:
    """A heading with sentences, a table (columns, rows) and plots (name, SVG), any of which may be empty."""

    title: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    plots: Sequence[tuple[str, str]] = ()


def load_record(path: Path, kind: str) -> dict[str, Any]:
    """Return a result file's content; raises CodetrError if it cannot be read or is of another kind."""
    record = read_record(path)
    if record.get("kind") != kind or MARK in record:
        raise CodetrError(f"{path} holds no results of kind '{kind}': expected the JSON that such a run wrote")
    return record


def read_record(path: Path) -> dict[str, Any]:
    """Return a result file's content, of any kind; {} for another JSON. Raises CodetrError if it cannot be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CodetrError(f"cannot read the results {path}: {error}") from error
    return record if isinstance(record, dict) else {}


def write_server_report(record: Mapping[str, Any], output: Path, baseline: Mapping[str, Any] | None = None) -> None:
    """Write `report.html`, `report.md` and the plots as SVG files to `output`; `baseline` is an earlier record."""
    write_report("Server sweep", record, server_sections(record, baseline), output)


def write_report(title: str, record: Mapping[str, Any], sections: Sequence[Section], output: Path) -> None:
    """Write sections as `report.html` (self-contained) and `report.md` with its SVG files to `output`."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.html").write_text(to_html(title, record, sections), encoding="utf-8")
    (output / "report.md").write_text(to_markdown(title, record, sections), encoding="utf-8")
    for section in sections:
        for name, drawing in section.plots:
            (output / f"{name}.svg").write_text(drawing, encoding="utf-8")


def server_sections(record: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[Section]:
    """Return the sections of a server sweep."""
    levels = summarise_levels(record)
    concurrency = [level for level in levels if level.mode == "concurrency"]
    ensemble = [level for level in concurrency if level.model == contract.ENSEMBLE]
    rates = [level for level in levels if level.mode == "rate"]
    sections = [
        Section("How it was measured", _method(record)),
        *([comparison_section(record, baseline)] if baseline else []),
        *_curves(concurrency),
        *([_cost_section(concurrency)] if ensemble else []),
        *([_stack_section(ensemble)] if ensemble else []),
        *([_rate_section(rates)] if rates else []),
        *([_search_section(record)] if record["highest_rate"] is not None else []),
        *([failure_section(record)] if any(result["error"] for result in record["results"]) else []),
    ]
    return [section for section in sections if section.text or section.rows or section.plots]


def _method(record: Mapping[str, Any]) -> str:
    rules, plan = record["criteria"], record["plan"]
    sizes = ", ".join(f"{width}x{height}" for width, height in plan["picture_sizes"])
    cut = "" if record["complete"] else " The run was cut short: levels are missing."
    return (
        f"perf_analyzer over {record['protocol']}{_named(record)}, JPEGs of {sizes} in turn, {plan['batch']} image(s) "
        f"a request. Each level: {rules['windows']} windows of at least {rules['window_seconds']:g} s and about "
        f"{rules['min_requests']} requests, {plan['repeats']} pass(es) over all levels; figures are medians over the "
        "passes, ± half of (largest - smallest) / median. A level is called stable if in every pass its windows differ "
        f"by at most {rules['stable_throughput']:.0%} in throughput and {rules['stable_p99']:.0%} in p99 and at most "
        f"{rules['max_delayed']:.0%} of the requests left late.{cut}"
    )


def _named(record: Mapping[str, Any]) -> str:
    ensemble = record.get("ensemble", contract.ENSEMBLE)
    return f", engine `{ensemble}`" if ensemble != contract.ENSEMBLE else ""


def level_rows(levels: Sequence[LevelSummary]) -> list[list[str]]:
    """Return the table rows of levels, by load."""
    return [
        [
            f"{level.value:g}", f"{level.throughput:.1f} ± {level.spread / 2:.0%}", f"{level.p50:.1f}",
            f"{level.p95:.1f}", f"{level.p99:.1f} ± {level.p99_spread / 2:.0%}", "yes" if level.stable else "no",
        ]
        for level in sorted(levels, key=lambda level: level.value)
    ]  # fmt: skip


LEVEL_COLUMNS = ("images/s", "p50 ms", "p95 ms", "p99 ms", "stable")


def _curves(levels: Sequence[LevelSummary]) -> list[Section]:
    sections = []
    for model in dict.fromkeys(level.model for level in levels):
        own = [level for level in levels if level.model == model]
        drawings = [(f"curve-{model}", plots.svg(plots.throughput_latency(own, f"{model}: concurrency")))]
        if any(level.gauges for level in own):
            drawings.append((f"usage-{model}", plots.svg(plots.usage(own, f"{model}: CPU and GPU use"))))
        sections.append(
            Section(f"{model} under concurrency", "", ("concurrency", *LEVEL_COLUMNS), level_rows(own), drawings)
        )
    return sections


def _cost_section(levels: Sequence[LevelSummary]) -> Section:
    """Return what the ensemble costs beside its detector step alone, by load."""
    alone = {level.value: level for level in levels if level.model == contract.DETECTOR}
    rows = [
        [
            f"{level.value:g}", f"{level.p50:.1f}", f"{alone[level.value].p50:.1f}",
            f"{level.p50 / alone[level.value].p50 - 1:+.0%}",
            f"{level.throughput / alone[level.value].throughput - 1:+.0%}",
        ]
        for level in sorted(levels, key=lambda level: level.value)
        if level.model == contract.ENSEMBLE and level.value in alone
    ]  # fmt: skip
    text = "The detector alone gets its pixels over the network, which the ensemble's step does not." if rows else ""
    columns = ("concurrency", "ensemble p50 ms", "detector alone p50 ms", "latency", "throughput")
    return Section("What the ensemble adds to the detector", text, columns, rows)


def _stack_section(levels: Sequence[LevelSummary]) -> Section:
    rows = [
        [
            f"{level.value:g}", model, f"{step['queue']:.2f}", f"{step['compute_input']:.2f}",
            f"{step['compute_infer']:.2f}", f"{step['compute_output']:.2f}", f"{step['batch']:.2f}",
        ]
        for level in sorted(levels, key=lambda level: level.value)
        for model, step in level.steps.items()
        if model != contract.ENSEMBLE
    ]  # fmt: skip
    columns = ("concurrency", "step", "queue ms", "input ms", "compute ms", "output ms", "mean batch")
    drawing = plots.svg(plots.step_stack(levels, "Where a request's time goes"))
    return Section("Time by step", "From the server's own statistics.", columns, rows, [("steps", drawing)])


def _rate_section(levels: Sequence[LevelSummary]) -> Section:
    drawing = plots.svg(plots.throughput_latency(levels, f"{contract.ENSEMBLE}: Poisson arrivals"))
    columns = ("requests/s offered", *LEVEL_COLUMNS)
    text = "images/s is what arrived and was answered: in windows this short it can differ from the rate asked for."
    return Section(
        f"{contract.ENSEMBLE} under Poisson arrivals", text, columns, level_rows(levels), [("curve-rate", drawing)]
    )


def _search_section(record: Mapping[str, Any]) -> Section:
    limit, rate = record["plan"]["p99_limit"], record["highest_rate"]
    rows = level_rows(summarise_levels(record, search=True))
    found = f"{rate:.3g} requests/s" if rate else "none of the rates tried"
    text = f"Highest Poisson rate with p99 within {limit:g} ms: {found}."
    return Section("Highest rate within the latency limit", text, ("requests/s offered", *LEVEL_COLUMNS), rows)


def failure_section(record: Mapping[str, Any]) -> Section:
    """Return the section of a record's levels that could not be measured, and why."""
    rows = [
        [f"{result.get('case', '')} {result['model']} {result['mode']} {result['value']:g}".lstrip(), result["error"]]
        for result in record["results"]
        if result["error"]
    ]
    return Section("Levels that failed", "", ("level", "why"), rows)


def comparison_section(record: Mapping[str, Any], baseline: Mapping[str, Any]) -> Section:
    """Return the section that compares a record's levels with those of an earlier record."""
    comparisons = compare(summarise_levels(record), summarise_levels(baseline))
    text = (
        f"New over old; the old run is `{baseline['command']}` of {baseline['time']} on "
        f"{summary(baseline['machine'])}. A ratio is a difference only beyond the spread of both runs together."
    )
    if not comparisons:
        text += " The two runs have no level in common: nothing can be compared."
    columns = ("level", "throughput", "spread", "verdict", "p99", "spread", "verdict")
    return Section("Beside the baseline", text, columns, [comparison_row(each) for each in comparisons])


def comparison_row(comparison: Comparison) -> list[str]:
    """Return the table row of a compared level."""
    level = comparison.level
    return [
        f"{level.model} {level.mode} {level.value:g}", f"{comparison.throughput_ratio:.2f}",
        f"± {comparison.spread:.0%}", comparison.throughput_verdict, f"{comparison.p99_ratio:.2f}",
        f"± {comparison.p99_spread:.0%}", comparison.p99_verdict,
    ]  # fmt: skip


def to_html(title: str, record: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """Return the self-contained HTML page."""
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p><code>{html.escape(record['command'])}</code><br>{html.escape(record['time'])}<br>"
        f"{html.escape(summary(record['machine']))}</p>",
    ]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.text:
            parts.append(f"<p>{html.escape(section.text)}</p>")
        if section.rows:
            parts.append(html_table(section.columns, section.rows))
        parts.extend(drawing for _, drawing in section.plots)
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f"{head}<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"


def to_markdown(title: str, record: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """Return the Markdown; its plots are the SVG files beside it."""
    parts = [f"# {title}", f"`{record['command']}`, {record['time']}  \n{summary(record['machine'])}"]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.text:
            parts.append(section.text)
        if section.rows:
            parts.append(markdown_table(section.columns, [[markdown(cell) for cell in row] for row in section.rows]))
        parts.extend(f"![{name}]({name}.svg)" for name, _ in section.plots)
    return "\n\n".join(parts) + "\n"
