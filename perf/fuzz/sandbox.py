"""A child process that takes whatever a file does to it: it may crash, hang or run out of memory, and is replaced."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from perf.fuzz.cases import case
from perf.fuzz.outcomes import Outcome, judge
from perf.fuzz.pieces import Format
from serving.decode import ImageLimits
from serving.rules import DEFAULT_RULES, Pixels

_START_SECONDS = 60.0


@dataclass(frozen=True)
class Made:
    """A file of the fuzzer by what decides it."""

    form: Format
    seed: int
    number: int

    def data(self) -> bytes:
        """Return the file."""
        return case(self.form, self.seed, self.number)


@dataclass(frozen=True)
class Kept:
    """A file that was kept."""

    name: str
    content: bytes

    def data(self) -> bytes:
        """Return the file."""
        return self.content


@dataclass(frozen=True)
class Limits:
    """What a file may cost, and the engine it is prepared for: the CPU's seconds, bytes of address space.

    `patience` is the clock's: a machine that does much else takes longer.
    """

    seconds: float = 10.0  # as long as a request may wait in the server's queues
    patience: float = 60.0
    memory: int = 4 * 2**30
    size: tuple[int, int] = (64, 96)  # height, width
    rule: Pixels = DEFAULT_RULES.pixels
    images: ImageLimits = field(default_factory=ImageLimits)


@dataclass(frozen=True)
class Result:
    """A file's outcome, its size, and the most memory that its process has had until then, both in bytes."""

    file: Made | Kept
    outcome: Outcome
    size: int = 0
    peak: int = 0


Judge = Callable[[bytes, tuple[int, int], Pixels, ImageLimits], Outcome]


def judged(files: Sequence[Made | Kept], limits: Limits, how: Judge = judge) -> Iterator[Result]:
    """Yield what happens to each file, in order; a process that a file has ended is replaced for the next one.

    `how` is what the child process does with a file.
    """
    done = 0
    while done < len(files):
        for result in _until_the_end_of_a_process(files[done:], limits, how):
            done += 1
            yield result


def _until_the_end_of_a_process(files: Sequence[Made | Kept], limits: Limits, how: Judge) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, files, limits, how), daemon=True)
    process.start()
    theirs.close()
    peak = 0
    try:
        if not ours.poll(_START_SECONDS):
            raise TimeoutError(f"no process started within {_START_SECONDS:g} s")
        ours.recv()  # it is ready: from here on, the time is the file's
        for file in files:
            result = _answer(ours, process, limits, file, peak)
            peak = result.peak
            yield result
            if process.exitcode:
                return
    finally:
        process.kill()
        process.join()
        ours.close()


def _answer(pipe: Connection, process: Any, limits: Limits, file: Made | Kept, peak: int) -> Result:
    try:
        if not pipe.poll(limits.patience):
            process.kill()
            process.join()
            return Result(file, Outcome("hang", f"no end within {limits.patience:g} s", limits.patience), 0, peak)
        outcome, size, peak = pipe.recv()
        if outcome.seconds > limits.seconds:
            outcome = Outcome("hang", f"{outcome.seconds:.1f} s of the CPU", outcome.seconds)
        return Result(file, outcome, size, peak)
    except EOFError:
        process.join()
        return Result(file, Outcome("crash", f"the process ended with status {process.exitcode}"), 0, peak)


def _work(pipe: Connection, files: Sequence[Made | Kept], limits: Limits, how: Judge) -> None:
    import cv2

    cv2.setNumThreads(1)  # as in the server
    warnings.simplefilter("ignore")  # about metadata
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # nor need libjpeg's complaints be read
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    for file in files:
        data = file.data()
        started = time.process_time()
        outcome = how(data, limits.size, limits.rule, limits.images)
        outcome = replace(outcome, seconds=time.process_time() - started)
        pipe.send((outcome, len(data), _peak()))


def _peak() -> int:
    """Return the most bytes this process has had; `getrusage` would begin with those of the process that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024
