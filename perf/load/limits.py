"""What a finished run says, and whether it kept its limits."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perf.load.config import LoadConfig

# Exit statuses of locust itself: 1 for failures, 2 for a wrong command line.
STATUS_LIMIT = 3
SAMPLES_NAME = "requests.csv"
# What a soak may grow by after its warm-up unless told otherwise.
SOAK_MAX_GROWTH_MB = 100.0
# /dev/shm is flat if it grows by no more than this. Triton's Python backend extends a step's region by whole MiB when a
# batch needs more than any before, and never shrinks it: a rare batch of large photographs may still come late.
FLAT_SHARED_MB = 5.0
# Fewer samples of the memory than this hold no tenth of them: a start and an end would be the same one.
MIN_MEMORY_SAMPLES = 10


@dataclass(frozen=True)
class Sample:
    """One request: seconds since the start of the run, its name, milliseconds, and what went wrong ('' if nothing)."""

    second: float
    name: str
    milliseconds: float
    error: str


@dataclass(frozen=True)
class Outcome:
    """A run in figures; latencies in milliseconds are of good answers to good images."""

    requests: int
    failures: int
    requests_per_s: float
    p50: float
    p95: float
    p99: float
    errors: Mapping[str, int]

    def broken_limits(self, config: LoadConfig) -> list[str]:
        """Return a sentence for every limit that the run did not keep."""
        broken = []
        if config.max_p99_ms is not None and not self.p99 <= config.max_p99_ms:
            broken.append(f"p99 of {self.p99:.1f} ms is above max_p99_ms {config.max_p99_ms:g}")
        if config.max_failures is not None and self.failures > config.max_failures:
            broken.append(f"{self.failures} failures are more than max_failures {config.max_failures}")
        if not self.requests:
            broken.append("no request was answered")
        return broken

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def broken_memory_limit(memory: Mapping[str, Any] | None, config: LoadConfig) -> list[str]:
    """Return a sentence for each way in which `memory_record`'s figures break the limit on memory growth."""
    limit, broken = config.max_memory_growth_mb, []
    if limit is None:
        return []
    if memory is None:
        why = f"no memory of server_pid {config.server_pid} could be read; name tritonserver's own"
        if config.server_pid is None:
            why = f"no server of this machine and this user was found at {config.url}; name its server_pid"
        return [f"max_memory_growth_mb {limit:g} cannot be judged: {why}, or leave the limit out with -1"]
    if memory["samples"] < MIN_MEMORY_SAMPLES:
        return [
            f"max_memory_growth_mb {limit:g} cannot be judged by {memory['samples']} samples of the memory: let the "
            "run take longer, or leave the limit out with -1"
        ]
    if memory["growth_mb"] > limit:
        broken.append(f"memory grew by {memory['growth_mb']:.0f} MB, more than max_memory_growth_mb {limit:g}")
    if memory["shared_growth_mb"] > FLAT_SHARED_MB:
        broken.append(
            f"/dev/shm grew by {memory['shared_growth_mb']:.1f} MB after the warm-up, more than {FLAT_SHARED_MB:g}"
        )
    return broken


def good_times(samples: Iterable[Sample]) -> list[float]:
    """Return the milliseconds of good answers to good images."""
    return [s.milliseconds for s in samples if not s.error and not s.name.startswith("bad")]


def outcome(samples: Sequence[Sample]) -> Outcome:
    """Return the figures of a run's samples; percentiles are NaN if nothing was answered."""
    times = good_times(samples)
    p50, p95, p99 = np.percentile(times, [50, 95, 99]).tolist() if times else (float("nan"),) * 3
    length = max((s.second for s in samples), default=0.0)
    errors = Counter(s.error for s in samples if s.error)
    rate = len(samples) / length if length else 0.0
    return Outcome(len(samples), sum(errors.values()), rate, p50, p95, p99, dict(errors))


def over_time(samples: Sequence[Sample], bins: int = 60) -> dict[str, list[tuple[float, float]]]:
    """Return, by name, (second, value) points over the run: requests/s, failures/s, p50, p95 and p99 (milliseconds)."""
    length = max((s.second for s in samples), default=0.0) or 1.0
    width = length / bins
    groups: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[min(int(sample.second / width), bins - 1)].append(sample)
    series: dict[str, list[tuple[float, float]]] = {
        key: [] for key in ("requests/s", "failures/s", "p50", "p95", "p99")
    }
    for index in sorted(groups):
        middle, group = (index + 0.5) * width, groups[index]
        series["requests/s"].append((middle, len(group) / width))
        series["failures/s"].append((middle, sum(bool(s.error) for s in group) / width))
        times = good_times(group)
        for percentile in (50, 95, 99) if times else ():
            series[f"p{percentile}"].append((middle, float(np.percentile(times, percentile))))
    return series


def write_samples(samples: Iterable[Sample], path: Path) -> None:
    """Write samples as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("second", "name", "milliseconds", "error"))
        writer.writerows((f"{s.second:.4f}", s.name, f"{s.milliseconds:.3f}", s.error) for s in samples)
