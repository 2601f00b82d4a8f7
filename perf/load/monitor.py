"""Memory of a local server, each of its Python steps and the shared memory between them, during a run."""

from __future__ import annotations

import csv
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

MEMORY_NAME = "memory.csv"
MB = 1e6
SERVER = "server"
# Growth counts from here on: before, arenas and shared memory grow to what the largest batch needs.
WARM_UP_SHARE = 0.1
# Plots and records hold at most this many points a line; memory.csv has them all.
MAX_POINTS = 200


@dataclass(frozen=True)
class ProcessMemory:
    """MB of one process: resident, and proportional, where a page shared by n processes counts 1/n."""

    rss: float
    pss: float


@dataclass(frozen=True)
class MemorySample:
    """Memory at a second of the run, after so many requests: of each process, and MB of /dev/shm the server holds."""

    second: float
    requests: int
    processes: Mapping[str, ProcessMemory]
    shared: float

    @property
    def total(self) -> float:
        """MB of all processes together; proportional, so that shared pages count once."""
        return sum(process.pss for process in self.processes.values())


@dataclass(frozen=True)
class Change:
    """MB of something after the warm-up and at the end of a run, and the most it had."""

    start: float
    end: float
    peak: float

    @property
    def growth(self) -> float:
        """MB gained after the warm-up."""
        return self.end - self.start


class MemoryMonitor:
    """Samples the memory of a server of this machine and its child processes; knows no server, samples nothing."""

    def __init__(self, server: psutil.Process | None) -> None:
        self._server = server
        self._start = time.monotonic()
        self.samples: list[MemorySample] = []

    def sample(self, requests: int) -> None:
        """Add one sample after `requests` requests, unless there is no server here or it has ended."""
        if self._server is None:
            return
        second = time.monotonic() - self._start
        try:
            figures = {name: _memory(process) for name, process in named_processes(self._server).items()}
            shared = shared_memory(self._server.pid)
        except (psutil.Error, OSError):
            return
        processes = {name: memory for name, memory in figures.items() if memory}
        if SERVER in processes:
            self.samples.append(MemorySample(second, requests, processes, shared / MB))


def _memory(process: psutil.Process) -> ProcessMemory | None:
    try:
        memory = process.memory_full_info()
    except psutil.NoSuchProcess:  # it has ended just now
        return None
    return ProcessMemory(memory.rss / MB, memory.pss / MB)


def named_processes(server: psutil.Process) -> dict[str, psutil.Process]:
    """Return a server's running processes by name: 'server', and 'MODEL N' for instance N of a Python model."""
    processes = {SERVER: server}
    seen: Counter[str] = Counter()
    for child in sorted(server.children(recursive=True), key=lambda child: child.pid):
        try:
            name = _process_name(child.cmdline()) or child.name()
        except psutil.NoSuchProcess:  # it has ended; psutil counts a zombie as one of these
            continue
        processes[f"{name} {seen[name]}"] = child
        seen[name] += 1
    return processes


def _process_name(arguments: Sequence[str]) -> str | None:
    """Return the model that a Python stub runs: its arguments name .../MODEL/VERSION/model.py."""
    paths = [Path(argument) for argument in arguments if argument.endswith("/model.py")]
    return paths[0].parent.parent.name if paths else None


def shared_memory(pid: int) -> int:
    """Return the bytes that the files of /dev/shm mapped by a process occupy; other programs' files do not count.

    Raises OSError if the process has ended or belongs to somebody else.
    """
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    files = {Path(name) for name in re.findall(r"(/dev/shm/\S+)$", maps, re.MULTILINE)}
    return sum(file.stat().st_blocks * 512 for file in files if file.exists())


def local_server(url: str) -> psutil.Process | None:
    """Return the process that listens at `host:port` if the host is this machine and the process can be seen."""
    host, _, port = url.rpartition(":")
    if host not in ("localhost", "127.0.0.1", "[::1]"):
        return None
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == int(port) and connection.pid:
                return psutil.Process(connection.pid)
    except psutil.Error:
        return None
    return None


def after_warm_up(samples: Sequence[MemorySample]) -> list[MemorySample]:
    """Return the samples after the first WARM_UP_SHARE of the run."""
    return [each for each in samples if each.second >= samples[-1].second * WARM_UP_SHARE]


def change(samples: Sequence[MemorySample], value: Callable[[MemorySample], float]) -> Change:
    """Return how `value` changed after the warm-up.

    Start and end are medians of the first and the last tenth, so that one garbage collection decides nothing. Raises
    ValueError without samples.
    """
    values = [value(each) for each in after_warm_up(samples)]
    if not values:
        raise ValueError("no samples")
    tenth = max(1, len(values) // 10)
    return Change(median(values[:tenth]), median(values[-tenth:]), max(values))


def changes(samples: Sequence[MemorySample]) -> dict[str, Change]:
    """Return the change of each process's proportional memory that was there to the end, by its name."""

    def of(name: str) -> Callable[[MemorySample], float]:
        return lambda sample: sample.processes[name].pss if name in sample.processes else 0.0

    return {name: change(samples, of(name)) for name in (samples[-1].processes if samples else {})}


def memory_record(samples: Sequence[MemorySample]) -> dict[str, Any] | None:
    """Return the memory's figures and a thinned course for results.json; None without samples."""
    if not samples:
        return None
    total, shared = change(samples, lambda each: each.total), change(samples, lambda each: each.shared)
    return {
        "samples": len(samples),
        "warm_up_share": WARM_UP_SHARE,
        "growth_mb": total.growth,
        "shared_growth_mb": shared.growth,
        "total": asdict(total),
        "shared": asdict(shared),
        "processes": {name: asdict(each) for name, each in changes(samples).items()},
        "course": [_course_row(sample) for sample in thinned(samples)],
    }


def _course_row(sample: MemorySample) -> dict[str, Any]:
    processes = {name: [round(each.rss, 1), round(each.pss, 1)] for name, each in sample.processes.items()}
    return {
        "second": round(sample.second, 1), "requests": sample.requests, "rss_pss_mb": processes,
        "shared_mb": round(sample.shared, 2),
    }  # fmt: skip


def thinned(samples: Sequence[MemorySample]) -> list[MemorySample]:
    """Return at most MAX_POINTS + 1 samples, evenly, the last one included."""
    step = -(-len(samples) // MAX_POINTS) or 1
    kept = list(samples[::step])
    return kept if not samples or kept[-1] is samples[-1] else [*kept, samples[-1]]


def write_memory(samples: Iterable[MemorySample], path: Path) -> None:
    """Write samples as CSV, a row for each process; 'shared' is the whole server's share of /dev/shm."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("second", "requests", "process", "rss_mb", "pss_mb", "shared_mb"))
        for sample in samples:
            for name, process in sample.processes.items():
                figures = (f"{value:.3f}" for value in (process.rss, process.pss, sample.shared))
                writer.writerow((f"{sample.second:.3f}", sample.requests, name, *figures))


def to_series(
    samples: Sequence[MemorySample], value: Callable[[ProcessMemory], float]
) -> dict[str, list[tuple[float, float]]]:
    """Return (requests, MB) points by process, for a plot of `value`."""
    series: dict[str, list[tuple[float, float]]] = {}
    for sample in thinned(samples):
        for name, process in sample.processes.items():
            series.setdefault(name, []).append((float(sample.requests), value(process)))
    return series
