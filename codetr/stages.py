"""Shows the stages of a long command: a spinner while one runs, its time and the peak memory once it is done."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from codetr.shown import DONE, line, new_console

GPU_SAMPLING_SECONDS = 0.2


class Stages:
    """Called with a stage's name, a context manager that reports it on the console."""

    def __init__(self, console: Console | None = None, check: Callable[[], object] = lambda: None) -> None:
        """Report on the console; `check` is called where a stage ends, and may raise."""
        self.console, self.check = console or new_console(), check

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Report the stage `name` while the `with` block runs; a failed one gets no tick."""
        started = time.monotonic()
        with self.console.status(name), GpuPeak() as gpu:
            yield
            self.check()
        elapsed = time.monotonic() - started
        memory = f"peak {peak_memory_gib():5.2f} GiB"
        if gpu.peak_gib is not None:
            memory += f"   GPU {gpu.peak_gib:5.2f} GiB"
        self.console.print(line(DONE, f" {name:<18} {elapsed:7.1f} s   {memory}"))


class GpuPeak:
    """The most memory in use on the GPU while a `with` block runs, whoever uses it: TensorRT's is not PyTorch's.

    Attributes:
        peak_gib: in GiB; None where PyTorch uses no GPU.
    """

    def __init__(self, used: Callable[[], int | None] | None = None) -> None:
        self.peak_gib: float | None = None
        self._used = used or gpu_memory
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> GpuPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(GPU_SAMPLING_SECONDS):
            self._sample()

    def _sample(self) -> None:
        used = self._used()
        if used is not None:
            self.peak_gib = max(self.peak_gib or 0.0, used / 2**30)


def own_console() -> Console:
    """Return a console that stays on the terminal while what compilers print is redirected."""
    try:
        copy = os.dup(sys.stdout.fileno())
    except OSError:  # a stand-in without a file
        return new_console(sys.stdout)
    file = os.fdopen(copy, "w", encoding=sys.stdout.encoding, errors="backslashreplace", buffering=1)
    return new_console(file)


def gpu_memory() -> int | None:
    """Return the bytes in use on the GPU; None unless PyTorch is loaded and uses one.

    It asks the driver, not CUDA: a CUDA call could spoil a graph that another thread is capturing.
    """
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    try:
        driver = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    device, memory = ctypes.c_void_p(), _Memory()
    name = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}".encode()
    failed = (
        driver.nvmlInit_v2()
        or driver.nvmlDeviceGetHandleByUUID(name, ctypes.byref(device))
        or driver.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
    )
    return None if failed else int(memory.used)


class _Memory(ctypes.Structure):
    """`nvmlMemory_t`: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def peak_memory_gib() -> float:
    """Return the largest resident memory of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
