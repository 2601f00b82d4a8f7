"""A load test's record and report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from perf import plots
from perf.load.config import LoadConfig
from perf.load.levels import load_levels
from perf.load.limits import (
    FLAT_SHARED_MB,
    SAMPLES_NAME,
    Outcome,
    Sample,
    broken_memory_limit,
    outcome,
    over_time,
    write_samples,
)
from perf.load.monitor import MEMORY_NAME, MemorySample, memory_record, thinned, to_series, write_memory
from perf.machine import header
from perf.records import write_record
from perf.report import LEVEL_COLUMNS, Section, comparison_section, level_rows, load_record, write_report
from perf.summaries import summarise_levels


def finish(
    config: LoadConfig, samples: Sequence[Sample], memory: Sequence[MemorySample], is_complete: bool = True
) -> list[str]:
    """Write everything that a run leaves in its folder; return a sentence for every limit that it broke.

    `is_complete` is whether the load went through its shape; else limits are judged by what was measured until then.
    """
    result = outcome(samples)
    figures = memory_record(memory)
    broken = [*result.broken_limits(config), *broken_memory_limit(figures, config)]
    levels = load_levels(samples, config)
    record = {**to_record(config, result, broken, levels, figures), "complete": is_complete}
    write_record(record, config.folder)
    write_samples(samples, config.folder / SAMPLES_NAME)
    write_memory(memory, config.folder / MEMORY_NAME)
    baseline = load_record(Path(config.baseline), "load") if config.baseline else None
    write_report("Load test", record, load_sections(record, samples, memory, baseline), config.folder)
    return broken


def to_record(
    config: LoadConfig,
    result: Outcome,
    broken: Sequence[str],
    levels: Sequence[Mapping[str, Any]],
    memory: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of results.json; JSON-ready."""
    return {
        **header("load"),
        "command": config.command,
        "config": asdict(config),
        "outcome": result.to_json(),
        "broken_limits": list(broken),
        "results": list(levels),
        "memory": memory,
    }


def load_sections(
    record: Mapping[str, Any],
    samples: Sequence[Sample],
    memory: Sequence[MemorySample],
    baseline: Mapping[str, Any] | None = None,
) -> list[Section]:
    """Return the report's sections."""
    series = over_time(samples)
    latency = {key: series[key] for key in ("p50", "p95", "p99")}
    rates = {key: series[key] for key in ("requests/s", "failures/s")}
    drawings = [
        ("latency", plots.svg(plots.lines(latency, "Latency of good images", "ms"))),
        ("rates", plots.svg(plots.lines(rates, "Requests and failures", "a second"))),
    ]
    columns = ("image", "requests", "failures", "p50 ms", "p95 ms", "p99 ms")
    sections = [
        Section("Outcome", _verdict(record)),
        *([comparison_section(record, baseline)] if baseline else []),
        *([_memory_section(record, memory)] if memory else []),
        Section("By image", _method(record["config"]), columns, rows_by_name(samples), drawings),
        *([_level_section(record)] if record["results"] else []),
    ]
    if record["outcome"]["errors"]:
        rows = [[error, str(count)] for error, count in record["outcome"]["errors"].items()]
        sections.append(Section("Failures", "", ("error", "count"), rows))
    return sections


def _level_section(record: Mapping[str, Any]) -> Section:
    text = (
        "Medians over the time under each load, ± half of (largest - smallest) / median of three parts of it; the "
        "first load of the run includes its start."
    )
    unit = "users" if record["config"]["arrival"] == "closed" else "requests/s offered"
    return Section("By load", text, (unit, "answers/s", *LEVEL_COLUMNS[1:]), level_rows(summarise_levels(record)))


def _memory_section(record: Mapping[str, Any], samples: Sequence[MemorySample]) -> Section:
    memory, limit = record["memory"], record["config"]["max_memory_growth_mb"]
    judged = f" Limits: {limit:g} MB and {FLAT_SHARED_MB:g} MB." if limit is not None else ""
    text = (
        f"After the warm-up (the first {memory['warm_up_share']:.0%} of the run) the server and its Python steps "
        f"grew by {memory['growth_mb']:.1f} MB together, and what they hold of /dev/shm by "
        f"{memory['shared_growth_mb']:.1f} MB.{judged} Proportional set sizes: a page that n processes share counts "
        f"1/n. {memory['samples']} samples; after the warm-up and end are medians of a tenth of them."
    )
    parts = {**memory["processes"], "all processes": memory["total"], "/dev/shm": memory["shared"]}
    columns = ("process", "after warm-up MB", "end MB", "growth MB", "peak MB")
    rows = [
        [name, *(f"{value:.1f}" for value in (each["start"], each["end"], each["end"] - each["start"], each["peak"]))]
        for name, each in parts.items()
    ]
    return Section("Memory", text, columns, rows, _memory_plots(samples))


def _memory_plots(samples: Sequence[MemorySample]) -> list[tuple[str, str]]:
    shared = {"/dev/shm": [(float(each.requests), each.shared) for each in thinned(samples)]}
    figures = {
        "memory-pss": plots.lines(to_series(samples, lambda m: m.pss), "Memory, proportional", "MB", "requests"),
        "memory-rss": plots.lines(to_series(samples, lambda m: m.rss), "Memory, resident", "MB", "requests"),
        "memory-shared": plots.lines(shared, "Shared memory of the server", "MB", "requests"),
    }
    return [(name, plots.svg(figure)) for name, figure in figures.items()]


def _verdict(record: Mapping[str, Any]) -> str:
    result, broken = record["outcome"], record["broken_limits"]
    limits = "; ".join(broken) if broken else "all limits kept"
    cut = "" if record.get("complete", True) else " It was ended before its time, and the limits hold until then."
    return (
        f"{result['requests']} requests, {result['requests_per_s']:.1f} a second, {result['failures']} failures; p50 "
        f"{result['p50']:.1f} ms, p95 {result['p95']:.1f} ms, p99 {result['p99']:.1f} ms. Limits: {limits}.{cut}"
    )


def _method(config: Mapping[str, Any]) -> str:
    if config["arrival"] == "closed":
        load = f"up to {config['peak']:g} users who think {config['think']:g} s on average between answer and request"
    else:
        load = f"up to {config['peak']:g} requests a second arriving at random, whatever the server does"
    length = f"{config['requests']} requests" if config["requests"] else f"{config['seconds']:g} s"
    return (
        f"{config['protocol']}, shape '{config['shape']}' over {length}: {load}. "
        f"{config['bad_share']:.1%} of the images are bad, and refusing them is the right answer."
    )


def rows_by_name(samples: Sequence[Sample]) -> list[list[str]]:
    """Return a table row for every kind of image: requests, failures, and percentiles of good answers."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.name].append(sample)
    return [_row(name, groups[name]) for name in sorted(groups)]


def _row(name: str, group: Sequence[Sample]) -> list[str]:
    times = [sample.milliseconds for sample in group if not sample.error]
    shown = [f"{value:.1f}" for value in np.percentile(times, [50, 95, 99])] if times else ["-"] * 3
    return [name, str(len(group)), str(len(group) - len(times)), *shown]
