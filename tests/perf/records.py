"""Recorded data that several tests build on."""

from __future__ import annotations

from dataclasses import replace

from perf.server.metrics import StepTime
from perf.server.perf_analyzer import Level, Reading
from perf.server.run import Plan, Result, to_record

READING = Reading(100.0, 10.0, 15.0, 18.0, 20.0, ((98.0, 19.0), (100.0, 20.0), (102.0, 21.0)), 0.0)
STEP = StepTime(1.0, 0.5, 8.0, 0.5, 2.0, 600, 0)
DESCRIPTION = {
    "kind": "server",
    "time": "2026-11-21T03:00:00+00:00",
    "command": "codetr bench server",
    "machine": {"cpu": "CPU & Co", "cores": 2, "gpus": [], "python": "3.11.7", "packages": {"numpy": "1.26.4"}},
    "protocol": "grpc",
}


def reading(throughput: float = 100.0, p99: float = 20.0, **changes) -> Reading:
    return replace(READING, throughput=throughput, p99=p99, **changes)


def result(model: str = "codetr", value: float = 1, mode: str = "concurrency", repeat: int = 0, **changes) -> Result:
    return Result(
        Level(model, mode, value, 1, 2.0),
        repeat,
        changes.pop("reading", READING),
        changes.pop("steps", {"codetr_preprocess": STEP, "codetr_detector": STEP}),
        changes.pop("gauges", {"cpu_percent": 50.0}),
        **changes,
    )


def record(*results: Result, plan: Plan | None = None, complete: bool = True) -> dict:
    return to_record(plan or Plan(), results, DESCRIPTION, complete)
