"""Repeats of one load level made one row, and rows of two runs compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from perf.statistics import mean_by_key, relative_range

Verdict = Literal["better", "worse", "no difference"]


@dataclass(frozen=True)
class LevelSummary:
    """One model under one load: medians over the repeats; latencies in milliseconds.

    spread and p99_spread: (largest - smallest) / median over the repeats, or over the windows of a single one; of p50,
    which windows do not tell, over the repeats only.
    steps: mean milliseconds by model and phase; gauges: mean use of CPU and GPU.
    """

    model: str
    mode: str
    value: float
    throughput: float
    p50: float
    p95: float
    p99: float
    spread: float
    p99_spread: float
    p50_spread: float
    stable: bool
    repeats: int
    steps: Mapping[str, Mapping[str, float]]
    gauges: Mapping[str, float]

    @property
    def key(self) -> tuple[str, str, float]:
        """What identifies the level in another run."""
        return self.model, self.mode, self.value


@dataclass(frozen=True)
class Comparison:
    """A level of two runs: new over old, the spread that both carry, and what that allows to say."""

    level: LevelSummary
    throughput_ratio: float
    p99_ratio: float
    spread: float
    p99_spread: float
    throughput_verdict: Verdict
    p99_verdict: Verdict


def summarise_levels(record: Mapping[str, Any], search: bool = False) -> list[LevelSummary]:
    """Return one row for every level of a record that has readings; those of the rate search if `search`."""
    groups: dict[tuple[str, str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for result in record["results"]:
        if result["reading"] and result["search"] == search:
            groups[result["model"], result["mode"], result["value"]].append(result)
    return [_summarise(*key, results) for key, results in groups.items()]


def _summarise(model: str, mode: str, value: float, results: Sequence[Mapping[str, Any]]) -> LevelSummary:
    readings = [result["reading"] for result in results]
    spread, p99_spread = _spreads(readings)
    return LevelSummary(
        model=model,
        mode=mode,
        value=value,
        throughput=median(reading["throughput"] for reading in readings),
        p50=median(reading["p50"] for reading in readings),
        p95=median(reading["p95"] for reading in readings),
        p99=median(reading["p99"] for reading in readings),
        spread=spread,
        p99_spread=p99_spread,
        p50_spread=relative_range([reading["p50"] for reading in readings]),
        stable=all(result["stable"] for result in results),
        repeats=len(results),
        steps=_mean_steps([result["steps"] for result in results]),
        gauges=mean_by_key([result["gauges"] for result in results]),
    )


def _spreads(readings: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    if len(readings) > 1:
        pairs = [(reading["throughput"], reading["p99"]) for reading in readings]
    else:
        pairs = readings[0]["windows"] or [(1.0, 1.0)]
    rates, p99s = zip(*pairs, strict=True)
    return relative_range(rates), relative_range(p99s)


def _mean_steps(steps: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    models = {model for step in steps for model in step}
    return {model: mean_by_key([step[model] for step in steps if model in step]) for model in sorted(models)}


def compare(new: Sequence[LevelSummary], old: Sequence[LevelSummary]) -> list[Comparison]:
    """Return a comparison for every level that both runs have.

    A ratio counts as a difference only beyond the sum of both runs' spreads.
    """
    earlier = {level.key: level for level in old}
    return [_compare(level, earlier[level.key]) for level in new if level.key in earlier]


def _compare(new: LevelSummary, old: LevelSummary) -> Comparison:
    throughput, p99 = new.throughput / old.throughput, new.p99 / old.p99
    spread, p99_spread = new.spread + old.spread, new.p99_spread + old.p99_spread
    return Comparison(
        new, throughput, p99, spread, p99_spread,
        verdict(throughput, spread, higher_is_better=True), verdict(p99, p99_spread, higher_is_better=False),
    )  # fmt: skip


def verdict(ratio: float, spread: float, higher_is_better: bool) -> Verdict:
    """Return what a ratio (new / old) says, given the relative spread of the two runs together."""
    if abs(ratio - 1) <= spread:
        return "no difference"
    return "better" if (ratio > 1) == higher_is_better else "worse"
