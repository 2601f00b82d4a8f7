"""Small files that ask for much work: each is as large as the limits let it be, or just beyond."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from random import Random

from perf.fuzz.pieces import Format, Piece, join, split
from perf.fuzz.sources import png, sources

# (width, height): at the limit of 64 megapixels in three shapes, just beyond it, and one that costs little.
_SIZES = ((8000, 8000), (64000, 1000), (1000, 64000), (8001, 8000), (2000, 1500), (2000, 1500))


def bomb(form: Format, random: Random) -> bytes:
    """Return a file of the format that inflates, claims or repeats."""
    return {"jpeg": _jpeg, "png": _png, "webp": _webp, "bmp": _bmp}[form](random)


def _jpeg(random: Random) -> bytes:
    """A frame of the largest size, with next to nothing in its scans, or with a great many of them."""
    kind = random.choice(("baseline", "progressive", "gray progressive", "CMYK", "CMYK progressive"))
    width, height = random.choice(_SIZES)
    pieces = [
        piece.with_body(piece.body[:1] + struct.pack(">HH", height, width) + piece.body[5:])
        if piece.kind in (b"\xff\xc0", b"\xff\xc2")
        else piece
        for piece in split("jpeg", sources()["jpeg"][kind])
    ]
    at = random.choice([index for index, piece in enumerate(pieces) if piece.kind == b"\xff\xda"])
    scans = [pieces[at], random.choice((pieces[at + 1], Piece(b"", b"")))] * random.choice((1, 20, 90, 5000))
    return join("jpeg", [*pieces[:at], *scans, *pieces[at + 2 :]])


def _png(random: Random) -> bytes:
    if random.random() < 0.4:
        pieces = split("png", png(2, 8))
        kind, head = random.choice(((b"iCCP", b"x\0\0"), (b"zTXt", b"x\0\0"), (b"iTXt", b"x\0\1\0\0\0")))
        chunks = random.choice(([Piece(kind, head + zeros(2**20))] * 70, [Piece(kind, head + zeros(2**26))]))
        return join("png", [pieces[0], *chunks, *pieces[1:]])
    (width, height), (colour, channels, depth) = (
        random.choice(_SIZES),
        random.choice(((0, 1, 8), (2, 3, 8), (6, 4, 8), (6, 4, 16))),
    )
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, random.choice((0, 0, 1)))
    size = (1 + width * channels * depth // 8) * height
    body = Piece(b"IDAT", zeros(random.choice((size, size + 2**26, size // 2)) if random.random() < 0.5 else 2**16))
    return join(
        "png", [Piece(b"IHDR", header), *[Piece(b"abCd", b"")] * random.choice((0, 9000)), body, Piece(b"IEND", b"")]
    )


@cache
def zeros(size: int) -> bytes:
    """Return that many zeros as zlib has them, put together from the blocks of one mebibyte: RFC 1950 and 1951."""
    whole, rest = divmod(size, 2**20)
    block, end = (zlib.compressobj(9, zlib.DEFLATED, -15) for _ in range(2))
    middle = block.compress(bytes(2**20)) + block.flush(zlib.Z_FULL_FLUSH)
    checksum = (size % 65521) << 16 | 1  # Adler-32 of zeros
    return b"\x78\xda" + middle * whole + end.compress(bytes(rest)) + end.flush() + struct.pack(">I", checksum)


def _webp(random: Random) -> bytes:
    """A huge canvas with a small frame, or with the same frame very often."""
    pieces = split("webp", sources()["webp"][random.choice(("animated", "animated lossless"))])
    width, height = random.choice(_SIZES)
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    head = [piece.with_body(piece.body[:4] + canvas) if piece.kind == b"VP8X" else piece for piece in pieces]
    frames = [piece for piece in head if piece.kind == b"ANMF"]
    return join("webp", [*(piece for piece in head if piece.kind != b"ANMF"), *frames * random.choice((1, 500))])


def _bmp(random: Random) -> bytes:
    """Run lengths for the largest picture: none, one row again and again, jumps, or ends of lines without an end."""
    width, height = random.choice(_SIZES)
    row = bytes([255, 1]) * (width // 255) + b"\0\0"
    data = random.choice((b"\0\1", row * min(height, 2000), b"\0\2\xff\xff" * 3000, b"\0\0" * 10**5, b""))
    depth, compression = random.choice(((8, 1), (4, 2), (24, 0), (1, 0)))
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, random.choice((height, -height)), 1, depth, compression, len(data), 0, 0, 16, 0
    )
    return b"BM" + struct.pack("<IHHI", 118 + len(data), 0, 0, 118) + header + bytes(64) + data
