"""Memory of a local server, its Python steps and the shared memory between them, during a run."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import psutil

MEMORY_NAME = "memory.csv"
MIB = 2**20


@dataclass(frozen=True)
class MemorySample:
    """Memory in MiB at a second of the run: resident of the server, of its Python steps in all, and /dev/shm in use."""

    second: float
    server: float
    steps: float
    shared: float


class MemoryMonitor:
    """Samples the memory of the server that listens at a port of this machine; knows no server, samples nothing."""

    def __init__(self, server: psutil.Process | None) -> None:
        self._server = server
        self._start = time.monotonic()
        self.samples: list[MemorySample] = []

    def sample(self) -> None:
        """Add one sample, unless there is no server here or it has ended."""
        if self._server is None:
            return
        try:
            steps = sum(child.memory_info().rss for child in self._server.children(recursive=True))
            server = self._server.memory_info().rss
        except psutil.Error:
            return
        second = time.monotonic() - self._start
        self.samples.append(MemorySample(second, server / MIB, steps / MIB, shared_memory() / MIB))


def shared_memory() -> int:
    """Return the bytes in use in /dev/shm; 0 on a machine without it."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return (status.f_blocks - status.f_bfree) * status.f_frsize


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


def growth(samples: list[MemorySample], warm_up: float = 0.1) -> float:
    """Return by how many MiB server and steps together grew after the first `warm_up` share of the run.

    Medians of the first and the last tenth of what remains, so that one garbage collection decides nothing.
    """
    rest = [s.server + s.steps for s in samples if s.second >= samples[-1].second * warm_up] if samples else []
    if len(rest) < 2:
        return 0.0
    tenth = max(1, len(rest) // 10)
    first, last = sorted(rest[:tenth]), sorted(rest[-tenth:])
    return last[len(last) // 2] - first[len(first) // 2]


def write_memory(samples: Iterable[MemorySample], path: Path) -> None:
    """Write samples as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([each.name for each in fields(MemorySample)])
        writer.writerows([f"{value:.3f}" for value in astuple(sample)] for sample in samples)


def to_series(samples: Iterable[MemorySample]) -> dict[str, list[tuple[float, float]]]:
    """Return (second, MiB) points by what was sampled, for a plot."""
    series: dict[str, list[tuple[float, float]]] = {"server": [], "Python steps": [], "/dev/shm": []}
    for sample in samples:
        values = asdict(sample)
        for label, key in (("server", "server"), ("Python steps", "steps"), ("/dev/shm", "shared")):
            series[label].append((sample.second, values[key]))
    return series
