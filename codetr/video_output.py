"""What `codetr detect` writes of a video: the annotated one, and a line of JSON a frame."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codetr_client.outputs import MARK, refuse_overwriting
from serving.errors import CodetrError

# H.264, which every browser plays, where OpenCV has an encoder for it; its wheels only have MPEG-4's older one.
CODECS = ("avc1", "mp4v")
# A box that players skip (ISO/IEC 14496-12, 8.1.2), behind all others: by it an earlier run's video is known again.
OWN_BOX = struct.pack(">I", 8 + len(MARK)) + b"free" + MARK
# The keys of a line, by which an earlier run's is known again.
LINE_KEYS = (frozenset({"frame", "seconds", "detections"}), frozenset({"frame", "seconds", "error"}))


class VideoFile:
    """An MP4 that is written under another name and gets its own when it is closed, so that it is always whole.

    rate: frames/s. The first frame decides the size: an odd side loses its last pixel, since MPEG-4 halves colours.

    Raises CodetrError where OpenCV writes no MP4, and for what cannot be written.
    """

    def __init__(self, path: Path, rate: float, first: npt.NDArray[np.uint8]) -> None:
        self._path = path
        # By a number, because the name itself can have all the bytes that a name may have.
        self._partial = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.partial.mp4")
        self._size = (first.shape[1] & ~1, first.shape[0] & ~1)
        self._last = np.ascontiguousarray(first[: self._size[1], : self._size[0]])
        self._frames = 0
        self._writer = self._opened(rate)

    def write(self, frame: npt.NDArray[np.uint8], until: int = 0) -> None:
        """Append a frame, BGR uint8 [H, W, 3]; the last one fills the places before `until`, if there are any."""
        import cv2

        while self._frames < until:
            self._append(self._last)
        width, height = self._size
        if frame.shape[1] & ~1 != width or frame.shape[0] & ~1 != height:  # streams can change
            frame = cv2.resize(frame, self._size).astype(np.uint8, copy=False)
        self._last = np.ascontiguousarray(frame[:height, :width])
        self._append(self._last)

    def close(self) -> None:
        """Give the video its name. Raises CodetrError if it is not whole: of a full disk OpenCV does not tell."""
        import cv2

        self._writer.release()
        written = cv2.VideoCapture(os.path.abspath(self._partial), cv2.CAP_FFMPEG)
        count = round(written.get(cv2.CAP_PROP_FRAME_COUNT))
        written.release()
        try:
            if count < self._frames:  # Ctrl-C can come between a frame and its count
                raise CodetrError(
                    f"cannot write {self._path}: {count} of {self._frames} frames arrived; free its disk or name "
                    "another folder"
                )
            with self._partial.open("ab") as file:
                file.write(OWN_BOX)
            self._partial.replace(self._path)
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        finally:
            self._partial.unlink(missing_ok=True)

    def _append(self, frame: npt.NDArray[np.uint8]) -> None:
        self._writer.write(frame)
        self._frames += 1

    def _opened(self, rate: float) -> Any:
        import cv2

        self._partial.unlink(missing_ok=True)  # of a run that was killed
        for codec in CODECS:
            place, fourcc = os.path.abspath(self._partial), cv2.VideoWriter.fourcc(*codec)
            writer = cv2.VideoWriter(place, cv2.CAP_FFMPEG, fourcc, rate, self._size)
            if writer.isOpened():
                return writer
        width, height = self._size
        raise CodetrError(
            f"cannot write {self._path}: OpenCV opens no MP4 of {width}x{height} with {' or '.join(CODECS)}; "
            "name another folder, or install opencv-python-headless from the package index"
        )


class LineFile:
    """A file of JSON lines; each can be read as soon as it is written.

    Raises CodetrError for what cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.unlink(missing_ok=True)  # a link is replaced, not written through
            self._file = path.open("x", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(path, error) from error

    def write(self, value: dict[str, Any]) -> None:
        """Append a line."""
        try:
            self._file.write(json.dumps(value) + "\n")
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check_outputs(video: Path, lines: Path, source: Path) -> None:
    """Check that nothing is replaced but what an earlier run wrote, and never the source.

    Raises:
        CodetrError: something would be; names it.
    """
    refuse_overwriting([video, lines], [source])
    for path, is_own in ((video, _is_own_video), (lines, _is_own_lines)):
        if os.path.lexists(path) and not (path.is_file() and is_own(path)):
            raise CodetrError(
                f"{path} would be overwritten, but no earlier run wrote it; move it away, or name another output folder"
            )


def _is_own_video(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - len(OWN_BOX)))
            return file.read() == OWN_BOX
    except OSError:
        return False


def _is_own_lines(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and first.keys() in LINE_KEYS


def _cannot_write(path: Path, error: OSError) -> CodetrError:
    return CodetrError(f"cannot write {path}: {error.strerror}; free its disk or name another folder")
