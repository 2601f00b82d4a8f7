from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil
import pytest

from perf.load.monitor import MemoryMonitor, MemorySample, growth, local_server, to_series, write_memory


def samples(*totals: float) -> list[MemorySample]:
    return [MemorySample(float(second), total / 2, total / 2, 4.0) for second, total in enumerate(totals)]


@pytest.mark.parametrize(
    ("totals", "expected"),
    [
        pytest.param([100.0] * 50, 0.0, id="flat"),
        pytest.param([10.0] * 9 + [200.0] * 91, 0.0, id="warm-up does not count"),
        pytest.param([100.0] * 60 + [180.0] * 60, 80.0, id="a leak does"),
        pytest.param([100.0] * 99 + [900.0], 0.0, id="one peak at the end does not"),
        pytest.param([], 0.0, id="no samples"),
        pytest.param([100.0], 0.0, id="one sample"),
    ],
)
def test_growth(totals: list[float], expected: float) -> None:
    assert growth(samples(*totals)) == expected


def test_the_process_behind_a_port_is_found_and_sampled() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        found = local_server(f"127.0.0.1:{listener.getsockname()[1]}")
    assert found is not None
    assert found.pid == os.getpid()
    monitor = MemoryMonitor(found)
    monitor.sample()
    (sample,) = monitor.samples
    assert sample.server == pytest.approx(psutil.Process().memory_info().rss / 2**20, rel=0.5)


@pytest.mark.parametrize("url", ["example.org:8001", "127.0.0.1:1"], ids=["another machine", "nobody listens"])
def test_no_server_here_means_no_samples(url: str) -> None:
    monitor = MemoryMonitor(local_server(url))
    monitor.sample()
    assert monitor.samples == []


def test_samples_are_written_and_plotted(tmp_path: Path) -> None:
    write_memory(samples(100.0), tmp_path / "memory.csv")
    assert (tmp_path / "memory.csv").read_text().splitlines() == [
        "second,server,steps,shared", "0.000,50.000,50.000,4.000",
    ]  # fmt: skip
    assert to_series(samples(100.0)) == {
        "server": [(0.0, 50.0)], "Python steps": [(0.0, 50.0)], "/dev/shm": [(0.0, 4.0)],
    }  # fmt: skip
