"""What the server says about itself while it is measured: time by step, and CPU and GPU use."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perf.statistics import mean_by_key
from serving.loopback import read_url

# Prometheus names of Triton -> name and factor in the reports.
GAUGES = {
    "nv_cpu_utilization": ("cpu_percent", 100.0),
    "nv_cpu_memory_used_bytes": ("memory_gib", 2.0**-30),
    "nv_gpu_utilization": ("gpu_percent", 100.0),
    "nv_gpu_memory_used_bytes": ("gpu_memory_gib", 2.0**-30),
    "nv_gpu_power_usage": ("gpu_watts", 1.0),
}
PHASES = ("queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class StepTime:
    """Mean milliseconds that a request spent in one model, by phase, and the mean size of its batches."""

    queue: float
    compute_input: float
    compute_infer: float
    compute_output: float
    batch: float
    requests: int
    failures: int

    @property
    def total(self) -> float:
        """Milliseconds of all phases."""
        return self.queue + self.compute_input + self.compute_infer + self.compute_output


def step_times(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, StepTime]:
    """Return the time by model between two answers of Triton's statistics API (as JSON); idle models are left out."""
    earlier = {stats["name"]: stats for stats in before.get("model_stats", [])}
    times = {
        stats["name"]: step_time(earlier.get(stats["name"], {}), stats)[0] for stats in after.get("model_stats", [])
    }
    return {name: time for name, time in times.items() if time.requests}


def step_time(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[StepTime, int]:
    """Return the time between two statistics of one model, zeros where it was idle, and its images."""
    requests = difference(before, after, "success", "count")
    queue, taken, infer, given = (difference(before, after, phase, "ns") / max(requests, 1) / 1e6 for phase in PHASES)
    executions = int(after.get("execution_count", 0)) - int(before.get("execution_count", 0))
    images = int(after.get("inference_count", 0)) - int(before.get("inference_count", 0))
    failures = difference(before, after, "fail", "count")
    return StepTime(queue, taken, infer, given, images / max(executions, 1), requests, failures), images


def difference(before: Mapping[str, Any], after: Mapping[str, Any], phase: str, field: str) -> int:
    """Return by how much a number of one model's statistics has grown: `count` or `ns` of `success`, `queue` ..."""
    # protobuf's JSON has 64-bit numbers as text and leaves zeros out
    values = (stats.get("inference_stats", {}).get(phase, {}).get(field, 0) for stats in (after, before))
    later, earlier = (int(value) for value in values)
    return later - earlier


@dataclass(frozen=True)
class Sample:
    """One line of a Prometheus page."""

    name: str
    labels: Mapping[str, str]
    value: float


_SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE | re.ASCII)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def read_samples(text: str) -> list[Sample]:
    """Return the samples of a Prometheus page, in its order; what is no sample is left out."""
    samples = []
    for name, labels, value in _SAMPLE.findall(text):
        with contextlib.suppress(ValueError):
            samples.append(Sample(name, dict(_LABEL.findall(labels)), float(value)))
    return samples


def read_gauges(text: str) -> dict[str, float]:
    """Return the CPU and GPU gauges of a Prometheus page, in the reports' names and units; GPUs are averaged."""
    values: dict[str, list[float]] = {}
    for sample in read_samples(text):
        if sample.name in GAUGES:
            key, factor = GAUGES[sample.name]
            values.setdefault(key, []).append(sample.value * factor)
    return {key: sum(seen) / len(seen) for key, seen in values.items()}


class GaugeSampler:
    """Reads the metrics page every `interval` seconds while its block runs; `means()` are the gauges' averages.

    A page that cannot be read gives no averages, and never an error: figures without it are still figures.
    """

    def __init__(self, url: str, interval: float = 0.5) -> None:
        self._url = url
        self._interval = interval
        self._stop = threading.Event()
        self._samples: list[dict[str, float]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> GaugeSampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def means(self) -> dict[str, float]:
        """Return each gauge's mean over the samples; {} if there was none."""
        return dict(sorted(mean_by_key(self._samples).items()))

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self._samples.append(read_gauges(read_url(self._url, timeout=2).decode()))
            except OSError:
                continue
