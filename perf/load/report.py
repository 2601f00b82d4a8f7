"""A load test's record and report."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from perf import plots
from perf.load.config import LoadConfig
from perf.load.limits import SAMPLES_NAME, Outcome, Sample, outcome, over_time, write_samples
from perf.load.monitor import MEMORY_NAME, MemorySample, growth, to_series, write_memory
from perf.machine import header
from perf.report import Section, write_report

RESULTS_NAME = "results.json"


def finish(config: LoadConfig, samples: Sequence[Sample], memory: list[MemorySample]) -> list[str]:
    """Write everything that a run leaves in its folder; return a sentence for every limit that it broke."""
    config.folder.mkdir(parents=True, exist_ok=True)
    result = outcome(samples)
    broken = result.broken_limits(config)
    record = to_record(config, result, broken, memory)
    (config.folder / RESULTS_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_samples(samples, config.folder / SAMPLES_NAME)
    write_memory(memory, config.folder / MEMORY_NAME)
    write_report("Load test", record, load_sections(record, samples, memory), config.folder)
    return broken


def to_record(config: LoadConfig, result: Outcome, broken: Sequence[str], memory: list[MemorySample]) -> dict[str, Any]:
    """Return the content of results.json; JSON-ready."""
    return {
        **header("load"),
        "command": config.command,
        "config": asdict(config),
        "outcome": result.to_json(),
        "broken_limits": list(broken),
        "memory_growth_mib": growth(memory) if memory else None,
        "shared_memory_growth_mib": memory[-1].shared - memory[0].shared if memory else None,
    }


def load_sections(
    record: Mapping[str, Any], samples: Sequence[Sample], memory: Sequence[MemorySample]
) -> list[Section]:
    """Return the report's sections."""
    series = over_time(samples)
    latency = {key: series[key] for key in ("p50", "p95", "p99")}
    rates = {key: series[key] for key in ("requests/s", "failures/s")}
    drawings = [
        ("latency", plots.svg(plots.over_time(latency, "Latency of good images", "ms"))),
        ("rates", plots.svg(plots.over_time(rates, "Requests and failures", "a second"))),
    ]
    columns = ("image", "requests", "failures", "p50 ms", "p95 ms", "p99 ms")
    sections = [
        Section("Outcome", _verdict(record)),
        Section("By image", _method(record["config"]), columns, rows_by_name(samples), drawings),
    ]
    if record["outcome"]["errors"]:
        rows = [[error, str(count)] for error, count in record["outcome"]["errors"].items()]
        sections.append(Section("Failures", "", ("error", "count"), rows))
    if memory:
        drawing = plots.svg(plots.over_time(to_series(memory), "Memory", "MiB"))
        text = (
            f"Server and Python steps grew by {record['memory_growth_mib']:.0f} MiB after the first tenth of the run, "
            f"/dev/shm by {record['shared_memory_growth_mib']:.0f} MiB from its start."
        )
        sections.append(Section("Memory", text, plots=[("memory", drawing)]))
    return sections


def _verdict(record: Mapping[str, Any]) -> str:
    result, broken = record["outcome"], record["broken_limits"]
    limits = "; ".join(broken) if broken else "all limits kept"
    return (
        f"{result['requests']} requests, {result['requests_per_s']:.1f} a second, {result['failures']} failures; p50 "
        f"{result['p50']:.1f} ms, p95 {result['p95']:.1f} ms, p99 {result['p99']:.1f} ms. Limits: {limits}."
    )


def _method(config: Mapping[str, Any]) -> str:
    if config["arrival"] == "closed":
        load = f"up to {config['peak']:g} users who think {config['think']:g} s on average between answer and request"
    else:
        load = f"up to {config['peak']:g} requests a second arriving at random, whatever the server does"
    return (
        f"{config['protocol']}, shape '{config['shape']}' over {config['seconds']:g} s: {load}. "
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
