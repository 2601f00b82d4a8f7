"""Image files as the pieces their formats are made of, so that a mutation can keep the rest of the file whole.

Every format is taken apart by `split` and put together by `join`. Lengths and checksums are those that the pieces need,
unless a piece lies about its own on purpose.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Format = Literal["jpeg", "png", "webp", "bmp"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8"
JPEG_END = b"\xff\xd9"
JPEG_SCAN = b"\xff\xda"
# JPEG markers that stand alone, without a length: TEM, RST0-7, SOI, EOI (ITU-T T.81, table B.1).
_ALONE = frozenset({0x01, *range(0xD0, 0xDA)})
# BITMAPFILEHEADER; the length of what follows it is its own first field.
_BMP_FILE_HEADER = 14


@dataclass(frozen=True)
class Piece:
    """One chunk or segment: its type, its bytes, and what it claims where that is a lie."""

    kind: bytes
    body: bytes
    length: int | None = None  # None: the true one
    checksum: int | None = None  # PNG's; None: the true one

    def with_body(self, body: bytes) -> Piece:
        """Return the piece with other bytes; its lies stay."""
        return replace(self, body=body)


def split(form: Format, data: bytes) -> list[Piece]:
    """Return the pieces of a whole file.

    JPEG: marker and segment; the entropy-coded bytes behind a scan's header, and what follows the end marker, are
    pieces of kind b"". PNG: chunks. WebP: the chunks within RIFF. BMP: file header, information header with what
    follows up to the pixels, and the pixels.
    """
    return _FORMATS[form][0](data)


def join(form: Format, pieces: Sequence[Piece]) -> bytes:
    """Return the file that the pieces make."""
    return _FORMATS[form][1](pieces)


def _split_png(data: bytes) -> list[Piece]:
    pieces, at = [], len(PNG_SIGNATURE)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        pieces.append(Piece(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return pieces


def _join_png(pieces: Sequence[Piece]) -> bytes:
    return PNG_SIGNATURE + b"".join(map(png_chunk, pieces))


def png_chunk(piece: Piece) -> bytes:
    """Return a PNG chunk: length, type, body, CRC-32 of type and body."""
    length = len(piece.body) if piece.length is None else piece.length
    checksum = zlib.crc32(piece.kind + piece.body) if piece.checksum is None else piece.checksum
    return struct.pack(">I", length & 0xFFFFFFFF) + piece.kind + piece.body + struct.pack(">I", checksum & 0xFFFFFFFF)


def _split_jpeg(data: bytes) -> list[Piece]:
    pieces, at = [Piece(JPEG_START, b"")], 2
    while at + 2 <= len(data):
        marker = data[at : at + 2]
        at += 2
        if marker == JPEG_END:
            pieces += [Piece(marker, b""), Piece(b"", data[at:])]
            break
        if marker[1] in _ALONE:
            pieces.append(Piece(marker, b""))
            continue
        (length,) = struct.unpack_from(">H", data, at)
        pieces.append(Piece(marker, data[at + 2 : at + length]))
        at += length
        if marker == JPEG_SCAN:
            end = _scan_end(data, at)
            pieces.append(Piece(b"", data[at:end]))
            at = end
    return pieces


def _scan_end(data: bytes, at: int) -> int:
    """Return where the next marker stands that is no restart and no stuffed 0xff."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return len(data)
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 2


def _join_jpeg(pieces: Sequence[Piece]) -> bytes:
    return b"".join(map(_jpeg_segment, pieces))


def _jpeg_segment(piece: Piece) -> bytes:
    if not piece.kind or (piece.kind[-1] in _ALONE and not piece.body):
        return piece.kind + piece.body
    length = len(piece.body) + 2 if piece.length is None else piece.length
    return piece.kind + struct.pack(">H", length & 0xFFFF) + piece.body


def _split_webp(data: bytes) -> list[Piece]:
    pieces, at = [Piece(b"RIFF", data[8:12])], 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        pieces.append(Piece(data[at : at + 4], data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return pieces


def _join_webp(pieces: Sequence[Piece]) -> bytes:
    """The first piece is RIFF itself, its body the type WEBP: it claims what follows."""
    head, *chunks = pieces or [Piece(b"RIFF", b"WEBP")]
    content = head.body + b"".join(map(riff_chunk, chunks))
    length = len(content) if head.length is None else head.length
    return head.kind + struct.pack("<I", length & 0xFFFFFFFF) + content


def riff_chunk(piece: Piece) -> bytes:
    """Return a RIFF chunk: type, length, body, a zero behind an odd body."""
    length = len(piece.body) if piece.length is None else piece.length
    return piece.kind + struct.pack("<I", length & 0xFFFFFFFF) + piece.body + b"\0" * (len(piece.body) % 2)


def _split_bmp(data: bytes) -> list[Piece]:
    (pixels,) = struct.unpack_from("<I", data, 10)
    return [
        Piece(b"BM", data[2:_BMP_FILE_HEADER]),
        Piece(b"", data[_BMP_FILE_HEADER:pixels]),
        Piece(b"", data[pixels:]),
    ]


def _join_bmp(pieces: Sequence[Piece]) -> bytes:
    return b"".join(piece.kind + piece.body for piece in pieces)


_FORMATS: dict[Format, tuple[Callable[[bytes], list[Piece]], Callable[[Sequence[Piece]], bytes]]] = {
    "jpeg": (_split_jpeg, _join_jpeg),
    "png": (_split_png, _join_png),
    "webp": (_split_webp, _join_webp),
    "bmp": (_split_bmp, _join_bmp),
}
FORMATS: tuple[Format, ...] = tuple(_FORMATS)
