"""What the steps of a server tell each other and its watchdog, in files of its private folder.

* `board`: a row for each process of a step, with the time at which it began what it does now.
* `NAME.queue`: the requests that NAME_preprocess has let in and NAME_detector has not yet answered. Triton 2.51 cannot
  bound the queue of a detector of one instance (a queue policy delays its requests), and a Python step sees neither
  that queue nor whether the caller has gone. So pre-processing refuses what would wait there for too long.

Times are nanoseconds of the machine's monotonic clock.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serving.errors import ServerBusyError

# The board's first row says whether the server ends. Columns of the others: process id, start of the present work or 0,
# longest work.
_PID, _SINCE, _LONGEST = 0, 1, 2
_ROWS = 256
# Places of a queue's head: time of an image, end of the last run, process of the detector that was loaded last.
_PER_IMAGE, _ENDED, _DETECTOR = 0, 1, 2
_HEAD = 3
# Rows of its runs, one for each instance of the detector: process id, requests in its present run or 0.
_INSTANCE, _TAKEN = 0, 1
_RUNS = 32
# Rows of its entries: images, when pre-processing handed them on or 0, when they are too late.
_IMAGES, _HANDED_ON, _TOO_LATE = 0, 1, 2
_ENTRIES = 1024
# An idle detector takes at once what it is handed: what it has not taken by then was cancelled on the way.
_LOST_NS = 500_000_000

Table = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Work:
    """What a process of a step says: seconds in its present work, None while it is idle, and in its longest."""

    present: float | None
    longest: float


class _File:
    """A file of 64-bit numbers that processes share; changed under its lock, which a process that dies lets go."""

    def __init__(self, path: Path, rows: int, columns: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = rows * columns * 8
        with self.locked():
            os.posix_fallocate(self._file, 0, size)  # or a full disk would end the process at its first write
        self.table: Table = np.frombuffer(mmap.mmap(self._file, size), np.int64).reshape(rows, columns)

    @contextmanager
    def locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


class Row:
    """The row of one process."""

    def __init__(self, values: Table) -> None:
        self._values = values

    def begin(self) -> int:
        """Note that work begins, and return the time."""
        now = time.monotonic_ns()
        self._values[_SINCE] = now
        return now

    def end(self, began: int) -> None:
        """Note that the work that began at that time is done."""
        self._values[_SINCE] = 0
        self._values[_LONGEST] = max(self._values[_LONGEST], time.monotonic_ns() - began)


class Board:
    """The rows of a server's steps.

    Args:
        folder: the server's private folder.
    """

    def __init__(self, folder: Path) -> None:
        self._file = _File(folder / "board", 1 + _ROWS, 3)
        self._head, self._rows = self._file.table[0], self._file.table[1:]

    @property
    def is_closed(self) -> bool:
        """Whether the server ends, and takes no more requests."""
        return bool(self._head[0])

    def close(self) -> None:
        """Let pre-processing refuse what comes from now on."""
        self._head[0] = 1

    def row(self) -> Row:
        """Return a row for this process, in place of one that has ended."""
        with self._file.locked():
            for values in self._rows:
                if values[_PID] in (0, os.getpid()) or not is_alive(int(values[_PID])):
                    values[:] = (os.getpid(), 0, 0)
                    return Row(values)
        return Row(np.zeros(3, np.int64))  # of a server with more steps than rows: not watched

    def work(self) -> dict[int, Work]:
        """Return what the living processes of steps say, by process id."""
        now = time.monotonic_ns()
        rows = [row for row in self._rows.tolist() if row[_PID] and is_alive(row[_PID])]
        return {pid: Work((now - since) / 1e9 if since else None, longest / 1e9) for pid, since, longest in rows}


def process_fields(pid: int) -> list[str]:
    """Return what stands in /proc/PID/stat behind the name (proc_pid_stat(5)): state, parent, ...; [] without it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    """Return whether a process has not ended, as one has that its parent has not yet asked for."""
    return process_fields(pid)[:1] not in ([], ["Z"], ["X"])


class DetectorQueue:
    """The images on their way to a detector, those in it included.

    Args:
        folder: the server's private folder.
        name: the engine's name in the repository.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._file = _File(folder / f"{name}.queue", 1, _HEAD + 2 * _RUNS + 3 * _ENTRIES)
        self._head, runs, entries = np.split(self._file.table[0], (_HEAD, _HEAD + 2 * _RUNS))
        self._runs, self._entries = runs.reshape(2, _RUNS), entries.reshape(3, _ENTRIES)  # read by whole rows
        self._run = self._runs[:, 0]  # this process's, if it is a detector

    def admit(self, images: int, max_images: int, max_seconds: float, seconds_left: float | None = None) -> int | None:
        """Let a request in, or refuse it. Where nothing waits it is always let in.

        Args:
            images: how many it has.
            max_images: the most that may be on their way, with these.
            max_seconds: the longest that they may wait; the time of two images always may.
            seconds_left: in which its answer is of use, or None.

        Returns:
            Its place, for `hand_on` or `withdraw`; None if the detector keeps no account.

        Raises:
            ServerBusyError: says what waits, and for how long.
        """
        if not self._head[_DETECTOR]:
            return None
        with self._file.locked():
            now = time.monotonic_ns()
            waiting = self._waiting(now)
            each = float(self._head[_PER_IMAGE]) / 1e9
            limit = max(max_seconds, 2 * each)
            place = int(self._entries[_IMAGES].argmin())
            if waiting and (waiting + images > max_images or self._entries[_IMAGES, place]):
                raise ServerBusyError(f"the queue is full: {waiting} images wait for the detector, of {max_images}")
            if waiting and waiting * each > limit:
                raise ServerBusyError(
                    f"the queue is full: {waiting} images wait for the detector, which takes {waiting * each:.1f} s "
                    f"for them, of {limit:g} s"
                )
            if waiting and seconds_left is not None and (waiting + images) * each > seconds_left:
                raise ServerBusyError(
                    f"the queue is too long for the deadline: {waiting} images wait for the detector, which takes "
                    f"{waiting * each:.1f} s for them, and {seconds_left:.1f} s are left"
                )
            lasts = (limit if seconds_left is None else min(limit, seconds_left)) + images * each
            self._entries[:, place] = (images, 0, now + round(lasts * 1e9))
            return place

    def waiting(self) -> int:
        """Return how many images are on their way."""
        with self._file.locked():
            return self._waiting(time.monotonic_ns())

    def hand_on(self, place: int | None) -> None:
        """Note that pre-processing hands a request on to the detector."""
        if place is not None:
            self._entries[_HANDED_ON, place] = time.monotonic_ns()

    def withdraw(self, place: int | None) -> None:
        """Take out a request that pre-processing has refused."""
        if place is not None:
            self._entries[:, place] = 0

    def open(self) -> None:
        """Begin to keep account, as an instance of the detector: what earlier processes had is gone with them."""
        with self._file.locked():
            self._entries[:] = 0
            self._head[_ENDED], self._head[_DETECTOR] = time.monotonic_ns(), os.getpid()
            for place, pid in enumerate(self._runs[_INSTANCE].tolist()):
                if pid == os.getpid() or not is_alive(pid):
                    self._runs[:, place] = 0
            self._run = self._runs[:, self._runs[_INSTANCE].argmin()]
            self._run[_INSTANCE] = os.getpid()

    def begin(self, requests: int) -> int:
        """Note that this instance of the detector begins a run of so many requests, and return the time."""
        self._run[_TAKEN] = requests
        return time.monotonic_ns()

    def longest_wait(self) -> float:
        """Return for how many seconds the oldest request that was handed on has waited; infinite if none was."""
        handed_on = self._entries[_HANDED_ON].copy()  # others write there meanwhile
        handed_on = handed_on[handed_on > 0]
        return (time.monotonic_ns() - int(handed_on.min())) / 1e9 if len(handed_on) else math.inf

    def correct(self, pending: int) -> None:
        """Forget the oldest requests of those handed on that are neither in the detector nor pending in Triton.

        They were cancelled between the two steps.
        """
        with self._file.locked():
            oldest = self._oldest()
            self._entries[:, oldest[: max(0, len(oldest) - pending - int(self._runs[_TAKEN].sum()))]] = 0

    def end(self, began: int, requests: int, images: int) -> None:
        """Note that this instance's run is over.

        Args:
            began: what `begin` returned.
            requests: how many it has answered, taken for the oldest.
            images: how many of their images it has computed.
        """
        with self._file.locked():
            now = time.monotonic_ns()
            if images:
                # Each of several instances takes an image's time, and together they answer more often.
                each = (now - max(began, int(self._head[_ENDED]))) // images
                before = int(self._head[_PER_IMAGE])
                self._head[_PER_IMAGE] = (before + each) // 2 if before else each
            self._run[_TAKEN], self._head[_ENDED] = 0, now
            self._entries[:, self._oldest()[:requests]] = 0

    def _oldest(self) -> Table:
        """Return the places of the requests that were handed on, the oldest first."""
        times = self._entries[_HANDED_ON].copy()  # others write there meanwhile, for which NumPy raises an error
        handed_on = np.flatnonzero(times)
        if len(handed_on) < 2:
            return handed_on
        return handed_on[np.argsort(times[handed_on], kind="stable")]

    def _waiting(self, now: int) -> int:
        """Forget what was lost on the way, and return how many images are on theirs."""
        if not self._entries[_IMAGES].any():
            return 0
        handed_on = self._entries[_HANDED_ON]
        lost = self._entries[_TOO_LATE] < now
        if not self._runs[_TAKEN].any() and now - self._head[_ENDED] > _LOST_NS:
            lost |= (handed_on > 0) & (handed_on < now - _LOST_NS)
        self._entries[:, lost] = 0
        return int(self._entries[_IMAGES].sum())
