"""Encoded pictures for tests, and the parts that they consist of."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image


def smooth_image(height: int = 37, width: int = 53) -> np.ndarray:
    """Colours that vary slowly, so that lossy formats stay close, and differ along both axes."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], axis=2).astype(np.uint8)


def photograph(height: int = 90, width: int = 130) -> np.ndarray:
    """Noise over slow colours: its JPEGs have bytes enough to be cut anywhere."""
    noise = np.random.default_rng(5).normal(0, 9, (height, width, 3))
    return (smooth_image(height, width) * 0.8 + 20 + noise).clip(0, 255).astype(np.uint8)


SMOOTH = smooth_image()
RGB = Image.fromarray(SMOOTH)
RGBA = Image.fromarray(np.dstack([SMOOTH, np.full(SMOOTH.shape[:2], 90, np.uint8)]))


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes, crc_error: int = 0) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ crc_error)


def png(width: int, height: int, bit_depth: int, colour_type: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_parts(data: bytes) -> tuple[bytes, bytes, bytes]:
    """What stands in a PNG before its pixels, the chunks of its pixels, and its end."""
    pixels, end = data.index(b"IDAT") - 4, data.rindex(b"IEND") - 4
    return data[:pixels], data[pixels:end], data[end:]


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def riff(body: bytes) -> bytes:
    """A WebP file of chunks."""
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
