"""The latency and the rate of one repeated call, on a GPU by its own clock, on a CPU by the wall's."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from perf.statistics import summarise

Call = Callable[[], object]
Timer = Callable[[Call], float]

# The GPU waits this many of its clocks, about half a millisecond, before each call that is timed: what the CPU needs
# to launch a CUDA graph is over by then, while the kernels that eager PyTorch launches one by one still come late.
SPIN_CLOCKS = 1_000_000
WARM_UP_CALLS = 5  # of a window
WARM_UP_CHANGE = 0.02  # between the medians of two windows of a warm program
MIN_CALLS = 10
GEMM_SIDE = {"cuda": 8192, "cpu": 1024}
GEMM_CALLS = 20


@dataclass(frozen=True)
class Latency:
    """Milliseconds of single calls, and how many calls a second there are if none waits for another."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    spread: float  # relative
    calls: int
    stable: bool  # the warm-up ended because the median stood still, not because its time was over
    calls_per_s: float


def measure_latency(call: Call, device: str, seconds: float) -> Latency:
    """Warm `call` up for at most `seconds`, then time single calls for `seconds`, and at least ten of them.

    Args:
        call: on a GPU it may return once its work is on the current stream.
        device: "cuda" or "cpu".
        seconds: on a GPU it takes this time again, to measure the rate.
    """
    timer = TIMERS[device]
    stable = warm_up(partial(timer, call), seconds)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < MIN_CALLS:
        times.append(timer(call))
    if device == "cuda":
        rate = _gpu_rate(call, max(MIN_CALLS, round(seconds * 1e3 / float(np.median(times)))))
    else:
        rate = 1e3 / float(np.mean(times))
    return _latency(times, stable, rate)


def latency_of(times: Sequence[float], calls_per_s: float) -> Latency:
    """Return the latency of a program that measured itself, by the milliseconds of single calls from the first one on.

    The warm-up is that of `measure_latency`, and at most the first half: what comes before the median stands still is
    left out.
    """
    half = len(times) // 2
    medians = [float(np.median(times[i : i + WARM_UP_CALLS])) for i in range(0, half, WARM_UP_CALLS)]
    for i in range(1, len(medians)):
        if _stands_still(medians[i - 1], medians[i]):
            return _latency(times[(i + 1) * WARM_UP_CALLS :], True, calls_per_s)
    return _latency(times[half:], False, calls_per_s)


def warm_up(timed: Callable[[], float], seconds: float) -> bool:
    """Repeat a timed call until its median stands still; return False if that took more than `seconds`."""
    end, previous = time.perf_counter() + seconds, 0.0
    while True:
        median = float(np.median([timed() for _ in range(WARM_UP_CALLS)]))
        if _stands_still(previous, median):
            return True
        if time.perf_counter() >= end:
            return False
        previous = median


def _stands_still(previous: float, median: float) -> bool:
    return abs(median - previous) <= WARM_UP_CHANGE * previous


def _latency(times: Sequence[float], stable: bool, calls_per_s: float) -> Latency:
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    return Latency(p50, p90, p99, summarise(times).spread, len(times), stable, calls_per_s)


def time_on_gpu(call: Call) -> float:
    """Return the milliseconds between two events around a call on an idle GPU."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(SPIN_CLOCKS)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def time_on_cpu(call: Call) -> float:
    """Return the milliseconds of a call."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


TIMERS: dict[str, Timer] = {"cuda": time_on_gpu, "cpu": time_on_cpu}


def _gpu_rate(call: Call, calls: int) -> float:
    """Return the calls a second when all are queued at once."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    torch.cuda.synchronize()
    return calls / (time.perf_counter() - start)


def gemm_rate(dtype: torch.dtype, device: str) -> float:
    """Return the floating-point operations a second of one large matrix product of normal random numbers."""
    side = GEMM_SIDE[device]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    call = partial(torch.mm, left, right, out=torch.empty_like(left))
    warm_up(partial(TIMERS[device], call), seconds=2)
    return 2 * side**3 / (summarise([TIMERS[device](call) for _ in range(GEMM_CALLS)]).median * 1e-3)


def used_memory(device: str) -> int | None:
    """Return the bytes in use on the GPU, whoever allocated them; None on a CPU."""
    if device == "cpu":
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free


def sm_clock_mhz(device: str) -> int | None:
    """Return the present clock of the first GPU's multiprocessors; None on a CPU or without `nvidia-smi`."""
    if device == "cpu" or not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    first = next(iter(done.stdout.split()), "")
    return int(first) if first.isdigit() else None
