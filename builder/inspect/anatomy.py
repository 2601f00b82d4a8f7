"""What an engine is made of, in one form for every kind: parts with types, sizes, times, and their origins."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

KIND = "anatomy"  # of the JSON file


@dataclass(frozen=True)
class Part:
    """One layer, node or kernel, as the engine runs it."""

    name: str
    kind: str  # its operator or type
    module: str = ""  # of the detector, that it belongs to; "" is the detector itself, or not known
    inputs: tuple[str, ...] = ()  # tensors, of which those that another part makes are edges of the graph
    outputs: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()  # of the outputs, such as float32 1x300x4
    type: str = ""  # that it puts out, by the project's names
    weight_bytes: int = 0
    flops: int | None = None  # of matrix products and convolutions; None of what is not counted
    ms: float | None = None  # in one inference
    made_of: tuple[str, ...] = ()  # what was fused into it
    tactic: str = ""
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Anatomy:
    """An engine."""

    engine: str  # kind
    title: str
    file: str
    file_bytes: int
    versions: dict[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parts: tuple[Part, ...]  # in the order in which they run
    memory: dict[str, int] = field(default_factory=dict)  # bytes, by what they are for
    total_ms: float | None = None  # of one inference, measured as a whole
    batch: int = 1  # that shapes, times and operations are of
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything for a JSON file."""
        return {"kind": KIND, **asdict(self), "by_kind": self.shares("kind"), "by_type": self.shares("type")}

    @property
    def has_times(self) -> bool:
        """Whether the time of parts is known."""
        return any(part.ms is not None for part in self.parts)

    def shares(self, key: str) -> list[dict[str, Any]]:
        """Return the parts summed up by one of their fields, the longest or else the most frequent first."""
        groups: dict[str, list[Part]] = defaultdict(list)
        for part in self.parts:
            groups[getattr(part, key)].append(part)
        rows = [{key: name, **_sums(parts)} for name, parts in groups.items()]
        return sorted(rows, key=lambda row: (-(row["ms"] or 0), -row["parts"], row[key]))

    def modules(self, depth: int = 1) -> list[dict[str, Any]]:
        """Return the parts summed up by the outermost `depth` names of their modules, in the order of their run."""
        groups: dict[str, list[Part]] = defaultdict(list)
        for part in self.parts:
            groups[".".join(part.module.split(".")[:depth])].append(part)
        return [{"module": name or "(the detector itself)", **_sums(parts)} for name, parts in groups.items()]


def _sums(parts: Sequence[Part]) -> dict[str, Any]:
    return {
        "parts": len(parts),
        "ms": _sum([part.ms for part in parts]),
        "weight_bytes": sum(part.weight_bytes for part in parts),
        "flops": _sum([part.flops for part in parts]),
    }


def _sum(values: Sequence[float | int | None]) -> float | int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def median_ms(infer: Callable[[], object], runs: int) -> float:
    """Return the median milliseconds of `runs` inferences, after one more."""
    times = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        infer()
        times.append(1e3 * (time.perf_counter() - started))
    return median(times[1:])


def common_module(modules: Sequence[str]) -> str:
    """Return the innermost module that all of `modules` lie in; "" for none."""
    if not modules:
        return ""
    parts = [module.split(".") for module in modules]
    shared = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        shared.append(names[0])
    return ".".join(shared)
