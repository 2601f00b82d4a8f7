"""Frames of a video file, a stream or a camera, as OpenCV decodes them."""

from __future__ import annotations

import math
import os
import queue
import re
import threading
import time
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import CodetrError

# By which a file is taken for a video; whether it is one, OpenCV finds out.
SUFFIXES = frozenset(
    {
        ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
        ".ogv", ".ts", ".webm", ".wmv",
    }
)  # fmt: skip  # a set of words
SCHEMES = frozenset({"http", "https", "rtmp", "rtmps", "rtsp", "rtsps", "rtp", "srt", "tcp", "udp"})

USUAL_RATE = 25.0  # frames/s, of a source that does not say
RATES = (0.1, 240.0)  # frames/s; what streams say beyond is the clock of their time stamps
TIMEOUT = 10_000  # milliseconds in which a stream must open, and bring its next frame
# Of the frames that a file announces; some containers only know their length in time.
FEWEST = 0.98


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame: its number in the source from 0, its time in seconds, and BGR uint8 [H, W, 3], upright."""

    number: int
    seconds: float
    pixels: npt.NDArray[np.uint8]


def is_video(name: str) -> bool:
    """Return whether a name is that of a video: a stream's address, or a file, there or not, with a video's suffix."""
    return _is_address(name) or (Path(name).suffix.lower() in SUFFIXES and not os.path.isdir(name))


class VideoSource:
    """A video file, a stream's address, or a camera by its number; one thread reads it.

    name: what it is called in messages, without the credentials and the query of an address.
    stem: how its results are called.
    rate: frames/s, on average.
    count: frames that it announces; None of a stream that goes on and of files that do not say.
    is_live: frames come when they come: those that nobody takes in time are dropped, and counted in `dropped`.

    Raises CodetrError for what OpenCV cannot open.
    """

    def __init__(self, source: str | int) -> None:
        self.name, self.stem = _names(source)
        self.dropped = 0
        self.read = 0  # frames, so far
        self.is_at_end = False
        self._capture = _opened(source, self.name)
        import cv2

        rate, count = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if RATES[0] <= rate <= RATES[1] else USUAL_RATE
        self.count = round(count) if 0 < count < math.inf else None
        self.is_live = isinstance(source, int) or (_is_address(source) and self.count is None)

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.is_live:  # a live one's thread does it: it may be reading
            self._capture.release()

    def frames(self, every: int = 1) -> Generator[Frame, None, None]:
        """Yield each `every`th frame, of a live source the newest; close the iterator to end it early."""
        return self._newest(every) if self.is_live else self._decoded(every)

    def fault(self) -> str | None:
        """Return why a source that has come to its end should not have; None where all is well."""
        if not self.is_at_end:
            return None
        if self.is_live:
            return f"{self.name} ended or broke off after {self.read} frames; what came is kept, start again for more"
        if self.read == 0:
            return f"{self.name}: no frame of it can be decoded; expected a video that is whole"
        if self.count is not None and self.read < FEWEST * self.count - 1:
            return (
                f"{self.name} ended after {self.read} of {self.count} frames: it is cut short or damaged, or its edit "
                "list hides the rest; what could be decoded is kept"
            )
        return None

    def _decoded(self, every: int) -> Generator[Frame, None, None]:
        import cv2

        start, seconds = 0.0, -1 / self.rate
        while self._capture.grab():
            if self.is_live:
                start = start or time.monotonic()
                stamp = time.monotonic() - start
            else:
                stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            # of formats without time stamps it stays 0
            seconds = stamp if stamp > seconds else seconds + 1 / self.rate
            self.read += 1
            if (self.read - 1) % every:
                continue
            is_whole, pixels = self._capture.retrieve()
            if is_whole:
                yield Frame(self.read - 1, seconds, pixels)
        self.is_at_end = True

    def _newest(self, every: int) -> Generator[Frame, None, None]:
        slot: queue.Queue[Frame | None] = queue.Queue(maxsize=1)
        is_closed = threading.Event()

        def read() -> None:
            try:
                with closing(self._decoded(every)) as frames:
                    for frame in frames:
                        if is_closed.is_set():
                            return
                        try:
                            slot.get_nowait()
                            self.dropped += 1
                        except queue.Empty:
                            pass
                        slot.put(frame)  # there is room: only this thread puts
            finally:
                self._capture.release()
                if not is_closed.is_set():
                    slot.put(None)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            while (frame := slot.get()) is not None:
                yield frame
        finally:
            is_closed.set()
            with suppress(queue.Empty):
                slot.get_nowait()  # which the thread may be waiting for
            # A thread within OpenCV aborts a program that ends. It waits for the next frame, or for `TIMEOUT`.
            thread.join()


def _is_address(name: str) -> bool:
    scheme, mark, _ = name.partition("://")
    return bool(mark) and scheme.lower() in SCHEMES


def _names(source: str | int) -> tuple[str, str]:
    """Return how a source is called in messages, and the stem of its results' names."""
    if isinstance(source, int):
        return f"camera {source}", f"camera-{source}"
    if not _is_address(source):
        return source, Path(source).stem
    scheme, _, rest = source.partition("://")
    place = re.split("[?#]", rest, maxsplit=1)[0]
    # With an @ behind it the place may as well be the half of a password.
    place = "..." if "@" in rest[len(place) :] else place.rpartition("@")[2]
    return f"{scheme}://{place}", re.sub(r"[^\w-]+", "-", place, flags=re.ASCII).strip("-")[:100] or "stream"


def _opened(source: str | int, name: str) -> Any:
    """Return OpenCV's capture of a source; frames come upright."""
    # Their own words would run through the progress bar, and show the password of an address.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    cv2.setLogLevel(0)
    if isinstance(source, int):
        capture, hint = cv2.VideoCapture(source), "look for its number in /dev/video*, and who else uses it"
    else:
        if _is_address(source):
            place, hint = source, "check the address, its credentials and the network"
        else:
            _check_file(Path(source))
            # Absolute, since FFmpeg takes what stands before a colon for a protocol.
            place, hint = os.path.abspath(source), "expected a whole video in a format that FFmpeg knows"
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT]
        capture = cv2.VideoCapture(place, cv2.CAP_FFMPEG, limits)
        # OpenCV 4.11 does not turn by itself what a phone recorded, releases before it do.
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
    if not capture.isOpened():
        raise CodetrError(f"{name} cannot be opened as a video; {hint}")
    return capture


def _check_file(path: Path) -> None:
    try:
        str(path).encode()
        with path.open("rb") as file:
            is_empty = not file.read(1)
    except UnicodeEncodeError as error:
        raise CodetrError(f"cannot read the video {path}: its name is not UTF-8, which OpenCV needs; rename") from error
    except OSError as error:
        raise CodetrError(f"cannot read the video {path}: {error.strerror}; name a file that is there") from error
    if is_empty:
        raise CodetrError(f"the video {path} is empty; expected a whole one")
