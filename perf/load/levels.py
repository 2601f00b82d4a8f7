"""A load test's samples as levels, each a load with its windows: what reports and comparisons of sweeps work on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from perf.load.config import LoadConfig
from perf.load.limits import Sample, good_times
from perf.statistics import windows_agree

# A run is cut into this many parts; parts under the same load make three windows of one level, whose spread is the
# error of its figures. Three for each of the five steps of shape 'steps'.
PARTS = 15
WINDOWS = 3


def load_levels(samples: Sequence[Sample], config: LoadConfig) -> list[dict[str, Any]]:
    """Return the levels in the form of a server sweep's results, one for each load that the shape holds.

    Loads that last for less than WINDOWS parts, such as those of a run cut short, are left out.
    """
    by_load: dict[float, list[tuple[float, list[Sample]]]] = defaultdict(list)
    for load, seconds, part in _parts(samples, config):
        by_load[load].append((seconds, part))
    levels = [_level(config, load, parts) for load, parts in sorted(by_load.items()) if len(parts) >= WINDOWS]
    return [level for level in levels if level["reading"]["windows"]]


def _parts(samples: Sequence[Sample], config: LoadConfig) -> list[tuple[float, float, list[Sample]]]:
    """Return the load in the middle of each part that has samples, its length in seconds, and its samples."""
    ordered = sorted(samples, key=lambda sample: sample.second)
    places = [min(int(config.progress(s.second, index) * PARTS), PARTS - 1) for index, s in enumerate(ordered)]
    starts = [0, *(index for index in range(1, len(places)) if places[index] != places[index - 1]), len(places)]
    parts, before = [], 0.0
    for start, end in pairwise(starts if ordered else []):
        load = config.profile.load_at((places[start] + 0.5) / PARTS)
        parts.append((load or 0.0, ordered[end - 1].second - before, ordered[start:end]))
        before = ordered[end - 1].second
    return parts


def _level(config: LoadConfig, load: float, parts: Sequence[tuple[float, list[Sample]]]) -> dict[str, Any]:
    ends = [round(len(parts) * index / WINDOWS) for index in range(WINDOWS + 1)]
    windows = [window for window in (_window(parts[start:end]) for start, end in pairwise(ends)) if window]
    whole = [sample for _, part in parts for sample in part]
    times = good_times(whole) or [float("nan")]
    reading = {
        "throughput": _answered(whole) / (sum(seconds for seconds, _ in parts) or 1.0),
        **{f"p{percentile}": float(np.percentile(times, percentile)) for percentile in (50, 90, 95, 99)},
        "windows": windows,
    }
    return {
        "model": config.model, "mode": config.arrival, "value": load, "repeat": 0, "search": False,
        "reading": reading, "stable": windows_agree(windows), "steps": {}, "gauges": {}, "error": "",
    }  # fmt: skip


def _window(parts: Sequence[tuple[float, list[Sample]]]) -> tuple[float, float] | None:
    """Return (requests a second, p99 in milliseconds), or None if no good image was answered."""
    samples = [sample for _, part in parts for sample in part]
    times, seconds = good_times(samples), sum(seconds for seconds, _ in parts)
    return (_answered(samples) / seconds, float(np.percentile(times, 99))) if times and seconds else None


def _answered(samples: Sequence[Sample]) -> int:
    return sum(not sample.error for sample in samples)
