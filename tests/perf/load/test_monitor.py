from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from perf.load.config import LoadConfig
from perf.load.limits import broken_memory_limit
from perf.load.monitor import (
    MAX_POINTS,
    MemoryMonitor,
    MemorySample,
    ProcessMemory,
    change,
    local_server,
    memory_record,
    named_processes,
    shared_memory,
    thinned,
    to_series,
    write_memory,
)


def samples(*totals: float, shared: float = 4.0) -> list[MemorySample]:
    return [
        MemorySample(
            float(second), 10 * second,
            {"server": ProcessMemory(total, total / 2), "codetr_detector 0": ProcessMemory(total, total / 2)}, shared,
        )
        for second, total in enumerate(totals)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("totals", "expected"),
    [
        pytest.param([100.0] * 50, 0.0, id="flat"),
        pytest.param([10.0] * 9 + [200.0] * 91, 0.0, id="warm-up does not count"),
        pytest.param([100.0] * 60 + [180.0] * 60, 80.0, id="a leak does"),
        pytest.param([100.0] * 99 + [900.0], 0.0, id="one peak at the end does not"),
        pytest.param([100.0], 0.0, id="one sample"),
    ],
)
def test_growth(totals: list[float], expected: float) -> None:
    assert change(samples(*totals), lambda sample: sample.total).growth == expected


def test_the_record_names_every_process_and_holds_a_thinned_course() -> None:
    record = memory_record(samples(*[100.0] * 300, *[140.0] * 300))
    assert record is not None
    assert record["growth_mb"] == 40
    assert record["processes"]["codetr_detector 0"] == {"start": 50.0, "end": 70.0, "peak": 70.0}
    assert len(record["course"]) == MAX_POINTS + 1  # the last sample is added
    assert record["course"][1] == {
        "second": 3.0, "requests": 30, "shared_mb": 4.0,
        "rss_pss_mb": {"server": [100.0, 50.0], "codetr_detector 0": [100.0, 50.0]},
    }  # fmt: skip
    assert memory_record([]) is None


def test_thinning_keeps_the_last_sample() -> None:
    course = samples(*range(1, 1000))
    assert thinned(course)[-1] is course[-1]
    assert len(thinned(course)) <= MAX_POINTS + 1
    assert thinned([]) == []


@pytest.mark.parametrize(
    ("totals", "shared", "limit", "broken"),
    [
        pytest.param([100.0] * 20, 4.0, 10.0, [], id="kept"),
        pytest.param([100.0] * 10 + [150.0] * 10, 4.0, None, [], id="no limit"),
        pytest.param(
            [100.0] * 10 + [150.0] * 10, 4.0, 10.0, ["memory grew by 50 MB, more than max_memory_growth_mb 10"],
            id="grew",
        ),
    ],
)  # fmt: skip
def test_memory_limit(totals: list[float], shared: float, limit: float | None, broken: list[str]) -> None:
    record = memory_record(samples(*totals, shared=shared))
    assert broken_memory_limit(record, LoadConfig("h:1", max_memory_growth_mb=limit)) == broken


@pytest.mark.parametrize(
    ("totals", "server_pid", "reason"),
    [
        pytest.param([100.0] * 9, None, "by 9 samples of the memory: let the run take longer", id="too short"),
        pytest.param([], None, "was found at h:1; name its server_pid", id="no server here"),
        pytest.param([], 12, "no memory of server_pid 12 could be read", id="another's process"),
    ],
)
def test_a_limit_that_cannot_be_judged_is_not_kept(totals: list[float], server_pid: int | None, reason: str) -> None:
    config = LoadConfig("h:1", max_memory_growth_mb=10.0, server_pid=server_pid)
    (broken,) = broken_memory_limit(memory_record(samples(*totals)), config)
    assert broken.startswith("max_memory_growth_mb 10 cannot be judged")
    assert reason in broken


def test_growing_shared_memory_breaks_the_limit() -> None:
    record = memory_record([*samples(*[100.0] * 10), *samples(*[100.0] * 100, shared=14.0)[10:]])
    broken = broken_memory_limit(record, LoadConfig("h:1", max_memory_growth_mb=10.0))
    assert broken == []
    record = memory_record([*samples(*[100.0] * 50), *samples(*[100.0] * 100, shared=14.0)[50:]])
    (broken_limit,) = broken_memory_limit(record, LoadConfig("h:1", max_memory_growth_mb=10.0))
    assert broken_limit == "/dev/shm grew by 10.0 MB after the warm-up, more than 5"


def test_a_limit_without_samples_is_broken() -> None:
    (broken,) = broken_memory_limit(None, LoadConfig("h:1", max_memory_growth_mb=10.0))
    assert "cannot be judged" in broken


def test_the_process_behind_a_port_is_found_and_sampled() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        found = local_server(f"127.0.0.1:{listener.getsockname()[1]}")
    assert found is not None
    assert found.pid == os.getpid()
    monitor = MemoryMonitor(found)
    monitor.sample(7)
    (sample,) = monitor.samples
    assert sample.requests == 7
    own = sample.processes["server"]
    assert own.rss == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.5)
    assert 0 < own.pss <= own.rss


def test_a_child_that_has_ended_does_not_cost_the_sample() -> None:
    code = "import os, subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', ''])\n"
    code += "os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)\n"  # ended, and not yet waited for
    code += "print(child.pid, flush=True)\ninput()\nchild.wait()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as parent:
        child = int(parent.stdout.readline())
        assert [each.pid for each in psutil.Process(parent.pid).children()] == [child]
        monitor = MemoryMonitor(psutil.Process(parent.pid))
        monitor.sample(1)
        parent.communicate("\n")
    (sample,) = monitor.samples
    assert set(sample.processes) == {"server"}


# Starts two of the program it is given, says their process ids once both run (only then does the system know their
# arguments), and waits for its own end.
PARENT = """
import subprocess, sys
pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
steps = [subprocess.Popen([sys.executable, sys.argv[1]], **pipes) for _ in range(2)]
for step in steps:
    step.stdout.readline()
print(*(step.pid for step in steps), flush=True)
input()
for step in steps:
    step.communicate(b"\\n")
"""


def test_python_steps_are_named_after_their_models(tmp_path: Path) -> None:
    code = tmp_path / "codetr_detector" / "1" / "model.py"
    code.parent.mkdir(parents=True)
    code.write_text("print(flush=True)\ninput()")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", PARENT, str(code)], **pipes) as parent:
        pids = {int(pid) for pid in parent.stdout.readline().split()}
        processes = named_processes(psutil.Process(parent.pid))
        parent.communicate("\n")
    assert {processes[f"codetr_detector {index}"].pid for index in range(2)} == pids
    assert processes["server"].pid == parent.pid


def test_shared_memory_is_of_the_files_that_the_process_maps() -> None:
    before = shared_memory(os.getpid())
    with tempfile.TemporaryFile(dir="/dev/shm") as unmapped, tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        unmapped.write(b"x" * 50_000)
        file.write(b"x" * 100_000)
        file.flush()
        with mmap.mmap(file.fileno(), 0):
            held = shared_memory(os.getpid()) - before
    assert 100_000 <= held < 100_000 + mmap.PAGESIZE


@pytest.mark.parametrize("url", ["example.org:8001", "127.0.0.1:1"], ids=["another machine", "nobody listens"])
def test_no_server_here_means_no_samples(url: str) -> None:
    monitor = MemoryMonitor(local_server(url))
    monitor.sample(0)
    assert monitor.samples == []


def test_samples_are_written_and_plotted(tmp_path: Path) -> None:
    write_memory(samples(100.0), tmp_path / "memory.csv")
    assert (tmp_path / "memory.csv").read_text().splitlines() == [
        "second,requests,process,rss_mb,pss_mb,shared_mb",
        "0.000,0,server,100.000,50.000,4.000",
        "0.000,0,codetr_detector 0,100.000,50.000,4.000",
    ]
    series = to_series(samples(100.0, 120.0), lambda memory: memory.pss)
    assert series == {"server": [(0.0, 50.0), (10.0, 60.0)], "codetr_detector 0": [(0.0, 50.0), (10.0, 60.0)]}
