"""Image files: their format; of PNG, WebP and BMP the picture's size, its EXIF data and the bytes of its pixels.

Nothing is decompressed here. What does not make pixels (text, profiles, thumbnails) is stepped over, whatever state it
is in, and no decoder gets to see it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from codetr_client.errors import InvalidImageError

# Of a file; each costs a step in Python. A PNG of 64 MiB in pieces of 4 KiB has 16,384.
MAX_PARTS = 100_000

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_PNG_PALETTE = 3  # the colour type
_WEBP_PIXELS = frozenset({b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"})
_WEBP_METADATA = 0x2C  # the flags of VP8X for a profile, EXIF and XMP
_BMP_CORE_HEADER = 12  # bytes; its sides have 16 bits


@dataclass(frozen=True)
class Container:
    """A picture's size in pixels as its file states it, its EXIF data, and the file without its metadata."""

    width: int
    height: int
    pixels: bytes
    exif: bytes = b""


def image_format(data: bytes) -> str | None:
    """Return what a file is by its first bytes: JPEG, PNG, WEBP or BMP, or None if it is nothing of these."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(PNG_SIGNATURE):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return "BMP" if data.startswith(b"BM") else None


def read_png(data: bytes) -> Container:
    """Read a PNG's chunks; EXIF data with a wrong checksum are no EXIF data.

    Raises:
        InvalidImageError: it has no header, a chunk of its pixels is cut short, or it has too many chunks.
    """
    if data[12:16] != b"IHDR" or len(data) < 33:
        raise InvalidImageError("damaged PNG header: expected an IHDR chunk of 13 bytes")
    width, height, _, colours = struct.unpack_from(">IIBB", data, 16)
    wanted = {b"IHDR", b"IDAT"} | ({b"PLTE"} if colours == _PNG_PALETTE else set())
    view, exif = memoryview(data), b""
    kept: list[bytes | memoryview] = [PNG_SIGNATURE]
    for kind, start, end in _png_chunks(data):
        if kind in wanted:
            kept.append(view[start:end])
            if end > len(data):
                raise InvalidImageError("damaged PNG image: it is cut short")
        elif kind == b"eXIf" and not exif and _is_sound(view[start:end]):
            exif = data[start + 8 : end - 4]
    return Container(width, height, b"".join((*kept, _PNG_END)), exif)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield every chunk's type and place; the last one can claim to end behind the data."""
    start = len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        if start + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + length + 12  # length, type, body, checksum
        yield kind, start, end
        if kind == b"IEND":
            return
        start = end
    raise InvalidImageError(f"damaged PNG header: more than {MAX_PARTS} chunks")


def _is_sound(chunk: memoryview) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def read_webp(data: bytes) -> Container:
    """Read a WebP's chunks; of an animation only the first frame is handed on.

    Raises:
        InvalidImageError: it has no header, a chunk of its pixels is cut short, or it has too many chunks.
    """
    view, size, exif = memoryview(data), None, b""
    kept: dict[bytes, list[bytes | memoryview]] = {}  # by type: of each the first counts
    for kind, start, end in _riff_chunks(data):
        size = size or _webp_size(kind, data[start + 8 : start + 18])
        if kind == b"EXIF" and not exif:
            exif = data[start + 8 : end]
        if kind not in _WEBP_PIXELS or kind in kept:
            continue
        if end > len(data):
            raise InvalidImageError("damaged WEBP image: it is cut short")
        kept[kind] = [view[start:end], *([b"\0"] if (end - start) % 2 else [])]
        if kind == b"VP8X":  # its flags announce no metadata any more
            kept[kind] = [view[start : start + 8], bytes([data[start + 8] & ~_WEBP_METADATA]), view[start + 9 : end]]
    if size is None:
        raise InvalidImageError("damaged WEBP header: expected a chunk VP8X, VP8L or VP8")
    body = b"".join((b"WEBP", *(part for parts in kept.values() for part in parts)))
    return Container(*size, b"RIFF" + struct.pack("<I", len(body)) + body, exif)


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield every chunk's type and place, without its padding; the last one can claim to end behind the data."""
    start, stop = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    for _ in range(MAX_PARTS):
        if start + 8 > stop:
            return
        kind, length = struct.unpack_from("<4sI", data, start)
        yield kind, start, start + 8 + length
        start += 8 + length + length % 2
    raise InvalidImageError(f"damaged WEBP header: more than {MAX_PARTS} chunks")


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in the first bytes of a chunk; None if it is not of a type that tells."""
    if (len(body) < 10 and kind in (b"VP8X", b"VP8 ")) or (len(body) < 5 and kind == b"VP8L"):
        raise InvalidImageError("damaged WEBP header: it is cut short")
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8 ":  # RFC 6386 section 9.1: 14 bits each, behind a start code
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":  # 14 bits each, less one, behind a signature byte
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def read_bmp(data: bytes) -> Container:
    """Read a BMP's header.

    Raises:
        InvalidImageError: it is cut short.
    """
    if len(data) < 26:
        raise InvalidImageError("damaged BMP header: it is cut short")
    is_core = int.from_bytes(data[14:18], "little") == _BMP_CORE_HEADER
    width, height = struct.unpack_from("<HH" if is_core else "<ii", data, 18)
    return Container(width, abs(height), data)  # a negative height: the rows stand top down


# By the name that `image_format` gives; JPEG files are read by `codetr_client.jpeg`.
READERS: dict[str, Callable[[bytes], Container]] = {"PNG": read_png, "WEBP": read_webp, "BMP": read_bmp}
