"""What is not computed: requests that would wait too long, and those that nobody waits for any more."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from codetr_client.contract import DEADLINE_PARAMETER, DEADLINE_PASSED
from serving.board import Board, DetectorQueue, Row
from serving.contract import DETECTOR, ENSEMBLE, PREPROCESS, model_name
from serving.errors import ServerBusyError
from serving.runtime import read_record

# The environment of a server that `codetr serve` runs: its private folder.
FOLDER_VARIABLE = "CODETR_RUN"
_PENDING = re.compile(r'^nv_inference_pending_request_count{model="([^"]*)"[^}]*} (\S+)$', re.MULTILINE)
# Longer than a request takes from one step to the next, or through a plan in Triton's own backend.
_IDLE_SECONDS = 0.4
# To ask whether a request was cancelled takes a third of a millisecond, in which the GPU waits, so it is asked only
# where one has waited for so long, and after a start, when Triton may have kept requests of a step that crashed.
_PATIENCE_SECONDS, _START_SECONDS = 0.1, 30.0

Run = Callable[..., Sequence[Any]]


class Door:
    """Where pre-processing lets requests in to its detector, or refuses them.

    Args:
        model: the name of the step, NAME_preprocess.
        max_images: the most that may be on their way to the detector.
        max_seconds: the longest that they may wait there.
    """

    def __init__(self, model: str, max_images: int, max_seconds: float) -> None:
        name = model.removesuffix(PREPROCESS.removeprefix(ENSEMBLE))
        self._queue = _queue(name)
        self._max_images, self._max_seconds = max_images, max_seconds
        self._detector = model_name(DETECTOR, name)
        self._next_question = 0.0

    @contextmanager
    def let_in(self, images: int, parameters: Mapping[str, Any]) -> Iterator[None]:
        """Let a request in for the length of its pre-processing, and hand it on if that succeeds.

        Args:
            images: how many it has.
            parameters: the request's; its deadline is one of them.

        Raises:
            ServerBusyError: the server ends, the deadline is over, or the detector would answer too late.
        """
        board = _board()
        if board is not None and board.is_closed:
            raise ServerBusyError("the server is ending and takes no more requests")
        left = seconds_left(parameters)
        if left is not None and left < 0:
            raise _passed(left, PREPROCESS)
        if self._queue is None:
            yield
            return
        try:
            place = self._queue.admit(images, self._max_images, self._max_seconds, left)
        except ServerBusyError:
            # before anybody is refused, Triton is asked whether all of them still wait
            if (pending := self._pending()) is None:
                raise
            self._queue.correct(pending)
            place = self._queue.admit(images, self._max_images, self._max_seconds, left)
        try:
            yield
        except BaseException:
            self._queue.withdraw(place)
            raise
        self._queue.hand_on(place)

    def _pending(self) -> int | None:
        """Return how many requests wait for the detector in Triton, or None.

        It is asked ten times a second at most, but at once where it found half of the places free: whoever asks
        pre-processing alone, as a benchmark does, fills them with what no detector will ever answer.
        """
        folder = private_folder()
        if folder is None or time.monotonic() < self._next_question:
            return None
        self._next_question = time.monotonic() + 0.1
        with suppress(OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            pending = pending_requests(folder, self._detector)
            if 2 * pending <= self._max_images:
                self._next_question = 0.0
            return pending
        return None


class Account:
    """A detector's own account of what it has answered; without the server's private folder it keeps none."""

    def __init__(self, queue: DetectorQueue | None) -> None:
        self._queue = queue
        self._opened = time.monotonic()
        if queue is not None:
            queue.open()

    @classmethod
    @cache
    def of_this_process(cls) -> Account:
        """Return the account of the step that this process is an instance of."""
        name = _model_of_this_process()
        return cls(_queue(name.removesuffix(DETECTOR.removeprefix(ENSEMBLE))) if name else None)

    @property
    def is_slow(self) -> bool:
        """Whether a request may have waited for so long that it was cancelled."""
        started = time.monotonic() - self._opened > _START_SECONDS
        return self._queue is None or not started or self._queue.longest_wait() > _PATIENCE_SECONDS

    @contextmanager
    def running(self, requests: int, engine: Run) -> Iterator[Run]:
        """Account for one `execute` of so many requests; gives the engine to run, which counts its images."""
        images = 0

        def counted(pixels: Any, *others: Any) -> Sequence[Any]:
            nonlocal images
            images += len(pixels)
            return engine(pixels, *others)

        if self._queue is None:
            yield engine
            return
        began = self._queue.begin(requests)
        try:
            yield counted
        finally:
            self._queue.end(began, requests, images)


def seconds_left(parameters: Mapping[str, Any]) -> float | None:
    """Return the seconds until a request's deadline, negative if it is over, or None without one."""
    deadline = parameters.get(DEADLINE_PARAMETER)
    if isinstance(deadline, bool) or not isinstance(deadline, (int, float)):
        return None
    return deadline / 1e3 - time.time()


def pending_requests(folder: Path, model: str) -> int:
    """Return how many requests wait for a model, from the metrics of the server with a private folder.

    Raises:
        OSError, http.client.HTTPException, ValueError, LookupError, TypeError: it does not say.
    """
    record = read_record(folder)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(record.host, record.host)
    connection = http.client.HTTPConnection(host, record.metrics_port, timeout=0.5)
    try:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
    finally:
        connection.close()
    return sum(int(float(count)) for name, count in _PENDING.findall(page) if name == model)


def too_late(request: Any, may_be_cancelled: bool = True) -> ServerBusyError | None:
    """Return why a detector should not compute a request: nobody waits for it; None if somebody may.

    Args:
        request: Triton's, as `execute` receives it.
        may_be_cancelled: whether to ask Triton.
    """
    if may_be_cancelled and request.is_cancelled():
        return ServerBusyError("the request was cancelled before the detector could start")
    try:
        text = request.parameters() or ""
        left = seconds_left(json.loads(text)) if DEADLINE_PARAMETER in text else None
    except (ValueError, AttributeError):  # no business of the detector's
        return None
    return _passed(left, DETECTOR) if left is not None and left < 0 else None


def drain(folder: Path, seconds: float, wanted: Callable[[], bool]) -> bool:
    """Let the steps of a server refuse new requests, and wait until they have done with those they have.

    Triton itself does not: when it ends it lets no request into its next step, and so fails those of an ensemble.

    Args:
        folder: the server's private folder.
        seconds: the longest to wait.
        wanted: asked meanwhile; False ends the wait.

    Returns:
        Whether they have.
    """
    board = Board(folder)
    board.close()
    queues = [DetectorQueue(folder, path.stem) for path in folder.glob("*.queue")]
    until, idle_since = time.monotonic() + seconds, time.monotonic()
    while (now := time.monotonic()) < until and wanted():
        if any(work.present is not None for work in board.work().values()) or any(each.waiting() for each in queues):
            idle_since = time.monotonic()
        elif now - idle_since > _IDLE_SECONDS:
            return True
        time.sleep(0.02)
    return False


@contextmanager
def at_work() -> Iterator[None]:
    """Tell the watchdog for the length of a block that this process is at work on what it was given last."""
    row = _row()
    if row is None:
        yield
        return
    began = row.begin()
    try:
        yield
    finally:
        row.end(began)


def _passed(left: float, model: str) -> ServerBusyError:
    part = "the detector" if model == DETECTOR else "pre-processing"
    return ServerBusyError(f"{DEADLINE_PASSED}: by {-left * 1e3:.0f} ms before {part} could start")


@cache
def _row() -> Row | None:
    board = _board()
    return None if board is None else board.row()


@cache
def _board() -> Board | None:
    folder = private_folder()
    with suppress(OSError):  # such as a full disk, which is no reason not to answer
        return None if folder is None else Board(folder)
    return None


def _queue(name: str) -> DetectorQueue | None:
    folder = private_folder()
    with suppress(OSError):
        return None if folder is None else DetectorQueue(folder, name)
    return None


def private_folder() -> Path | None:
    """Return the private folder of the server that this process belongs to, or None without one."""
    """Return the private folder of the server that this process belongs to, or None without one."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Path(folder) if folder and Path(folder).is_dir() else None


def _model_of_this_process() -> str | None:
    """Return the name of the model that this process runs: the command of Triton's stub names its `model.py`."""
    words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
    paths = [Path(os.fsdecode(word)) for word in words if word.endswith(b"/model.py")]
    return paths[0].parents[1].name if paths else None
