"""Videos for tests: each frame says which one it is."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np

STEP = 16  # of brightness, from frame to frame: more than lossy codecs move it


def frame_pixels(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A frame whose lower quarters are as bright as its number says, with a red corner at the top left."""
    pixels = np.full((height, width, 3), number % 16 * STEP, np.uint8)
    pixels[:, : width // 2] = number // 16 % 16 * STEP
    pixels[: height // 4, : width // 4] = (0, 0, 255)
    return pixels


def number_of(pixels: np.ndarray) -> int:
    """Which frame this is."""
    height, width = pixels.shape[:2]
    low, high = pixels[height // 2 :, width * 5 // 8 :], pixels[height // 2 :, : width * 3 // 8]
    return round(float(low.mean()) / STEP) + 16 * round(float(high.mean()) / STEP)


def write_video(
    path: Path, frames: int = 12, *, rate: float = 25.0, size: tuple[int, int] = (64, 48), codec: str = "mp4v"
) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), rate, size)
    assert writer.isOpened()
    for number in range(frames):
        writer.write(frame_pixels(number, *size))
    writer.release()
    return path


def read_video(path: Path) -> list[np.ndarray]:
    """All frames, as they are stored."""
    capture, frames = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def turn(path: Path) -> None:
    """Have an MP4 say that it is to be shown turned right by 90 degrees, as phones do (ISO/IEC 14496-12, 8.3.2)."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def vary_rate(path: Path) -> None:
    """Have the first half of an MP4's frames follow each other at twice the rate, the others at two thirds of it."""
    content = bytearray(path.read_bytes())
    table = content.index(b"stts") - 4  # ISO/IEC 14496-12, 8.6.1.2: how long each frame is shown
    _, _, _, _, frames, ticks = struct.unpack(">IIIIII", content[table : table + 24])
    half = struct.pack(">IIII", frames // 2, ticks // 2, frames // 2, 3 * ticks // 2)
    content[table : table + 24] = struct.pack(">I4sII", 32, b"stts", 0, 2) + half
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        size = content.index(box) - 4
        content[size : size + 4] = struct.pack(">I", struct.unpack(">I", content[size : size + 4])[0] + 8)
    path.write_bytes(content)
