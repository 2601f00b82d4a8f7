"""Ways to spoil a file: blindly, and by what its format is made of."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from random import Random

from perf.fuzz.pieces import Format, Piece, join, split

# Values that programs trip over, as unsigned numbers; written in 1, 2 or 4 bytes of either order.
_EDGES = (
    0, 1, 2, 3, 7, 8, 15, 16, 31, 127, 128, 255, 256, 257, 32767, 32768, 65535, 65536,
    2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1,
)  # fmt: skip
# Sides of images: nothing, little, borders of blocks, of the limit of pixels, and of the formats' own fields.
_SIDES = (
    0, 1, 2, 7, 8, 9, 16, 43, 44, 45, 255, 256, 257, 1000, 4095, 8000, 8001, 16383, 16384, 32768, 65500, 65535, 10**6,
    64 * 10**6, 2**31 - 1, 2**31, 2**32 - 1,
)  # fmt: skip
_MAGIC = (
    b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\0\0\0WEBP", b"BM", b"GIF89a", b"II*\0", b"MM\0*",
    b"\0\0\0\x0cJXL ", b"%PDF-1.7",
)  # fmt: skip


def blind(data: bytes, other: bytes, random: Random) -> bytes:
    """Return a file changed without a look at its format; `other` is a file to take bytes from."""
    return random.choice(_BLIND)(data, other, random)


def structured(form: Format, data: bytes, other: bytes, random: Random) -> bytes:
    """Return a file of which a piece, a field or the order of pieces was changed; the rest stays as it must be.

    `other` is a file of the same format, which gives pieces.
    """
    pieces = split(form, data)
    change = random.choice((*_PIECES, *_FIELDS[form] * 2))
    return join(form, change(pieces, split(form, other), random))


def _flip_bits(data: bytes, other: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16, 64))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _set_edge(data: bytes, other: bytes, random: Random) -> bytes:
    size, order = random.choice((1, 2, 4)), random.choice(("little", "big"))
    value = random.choice(_EDGES) % (1 << 8 * size)
    at = _place(data, random)
    return data[:at] + value.to_bytes(size, "little" if order == "little" else "big") + data[at + size :]


def _set_noise(data: bytes, other: bytes, random: Random) -> bytes:
    start, end = _range(data, random)
    return data[:start] + random.randbytes(end - start) + data[end:]


def _set_constant(data: bytes, other: bytes, random: Random) -> bytes:
    start, end = _range(data, random)
    return data[:start] + random.choice((b"\0", b"\xff", b"\x55")) * (end - start) + data[end:]


def _truncate(data: bytes, other: bytes, random: Random) -> bytes:
    return data[: _place(data, random)]


def _cut_out(data: bytes, other: bytes, random: Random) -> bytes:
    start, end = _range(data, random)
    return data[:start] + data[end:]


def _repeat(data: bytes, other: bytes, random: Random) -> bytes:
    start, end = _range(data, random)
    return data[:end] + data[start:end] * random.choice((1, 2, 9)) + data[end:]


def _splice(data: bytes, other: bytes, random: Random) -> bytes:
    start, end = _range(other, random)
    at = _place(data, random)
    keep = random.choice((0, end - start))  # inserted, or written over
    return data[:at] + other[start:end] + data[at + keep :]


def _other_tail(data: bytes, other: bytes, random: Random) -> bytes:
    return data[: _place(data, random)] + other[_place(other, random) :]


def _append(data: bytes, other: bytes, random: Random) -> bytes:
    return data + random.choice((other, random.randbytes(64), b"\0" * 4096, data))


def _other_magic(data: bytes, other: bytes, random: Random) -> bytes:
    magic = random.choice(_MAGIC)
    return magic + data[random.choice((0, len(magic))) :]


_BLIND: tuple[Callable[[bytes, bytes, Random], bytes], ...] = (
    _flip_bits, _flip_bits, _set_edge, _set_edge, _set_noise, _set_constant, _truncate, _cut_out, _repeat, _splice,
    _other_tail, _append, _other_magic,
)  # fmt: skip


def _place(data: bytes, random: Random) -> int:
    """Return a place in a file: half of them in its first 128 bytes, where the headers are."""
    return random.randrange(min(len(data), random.choice((128, len(data)))) + 1) if data else 0


def _range(data: bytes, random: Random) -> tuple[int, int]:
    start = _place(data, random)
    return start, min(len(data), start + random.choice((1, 2, 4, 16, 64, 512)))


Pieces = list[Piece]
Change = Callable[[Pieces, Pieces, Random], Pieces]


def _drop(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    at = _index(pieces, random)
    return pieces[:at] + pieces[at + 1 :]


def _double(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    at = _index(pieces, random)
    return pieces[:at] + [pieces[at]] * random.choice((2, 3, 50)) + pieces[at + 1 :]


def _exchange(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    first, second = _index(pieces, random), _index(pieces, random)
    changed = list(pieces)
    changed[first], changed[second] = changed[second], changed[first]
    return changed


def _shuffle(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    return random.sample(pieces, len(pieces))


def _adopt(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    at = _index(pieces, random)
    return [*pieces[:at], random.choice(others), *pieces[at + random.choice((0, 1)) :]]


def _spoil_body(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    """Length and checksum fit the new body."""
    other = random.choice(others).body
    return _changed(pieces, random, lambda piece: piece.with_body(blind(piece.body, other, random)))


def _empty_body(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    return _changed(pieces, random, lambda piece: piece.with_body(b""))


def _lie_about_length(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    def lie(piece: Piece) -> Piece:
        return replace(piece, length=random.choice((*_EDGES, len(piece.body) - 1, len(piece.body) + 1)))

    return _changed(pieces, random, lie)


def _lie_about_checksum(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    return _changed(pieces, random, lambda piece: replace(piece, checksum=random.getrandbits(32)))


def _other_kind(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    kinds = [piece.kind for piece in (*pieces, *others)]

    def rename(piece: Piece) -> Piece:
        return replace(piece, kind=random.choice((*kinds, _flip_bits(piece.kind, b"", random))))

    return _changed(pieces, random, rename)


def _nest(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    """A whole file of some format within a piece."""
    inner = random.choice(_MAGIC) + b"".join(piece.kind + piece.body for piece in others)
    return _changed(pieces, random, lambda piece: piece.with_body(piece.body[: random.randrange(40)] + inner[:60000]))


_PIECES: tuple[Change, ...] = (
    _drop, _double, _exchange, _shuffle, _adopt, _spoil_body, _spoil_body, _spoil_body, _empty_body,
    _lie_about_length, _lie_about_checksum, _other_kind, _nest,
)  # fmt: skip


def _index(pieces: Pieces, random: Random) -> int:
    return random.randrange(len(pieces))


def _changed(pieces: Pieces, random: Random, change: Callable[[Piece], Piece]) -> Pieces:
    at = _index(pieces, random)
    return [change(piece) if index == at else piece for index, piece in enumerate(pieces)]


def _of_kind(pieces: Pieces, kinds: tuple[bytes, ...], random: Random, change: Callable[[bytes], bytes]) -> Pieces:
    """Return the pieces with the body of one of these kinds changed; unchanged where there is none."""
    places = [index for index, piece in enumerate(pieces) if piece.kind in kinds and piece.body]
    if not places:
        return pieces
    at = random.choice(places)
    return [piece.with_body(change(piece.body)) if index == at else piece for index, piece in enumerate(pieces)]


def _write(body: bytes, layout: str, at: int, *values: int) -> bytes:
    """Write numbers into a body as `struct` has them, cut to their size; what does not fit is left out."""
    size = struct.calcsize(layout)
    if at + size > len(body):
        return body
    width = size // len(values)
    unsigned = [value % (1 << 8 * width) for value in values]
    return body[:at] + struct.pack(layout.upper(), *unsigned) + body[at + size :]


def _sides(random: Random) -> tuple[int, int]:
    return random.choice(_SIDES), random.choice(_SIDES)


_SOF = tuple(bytes([0xFF, code]) for code in (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA))


def _jpeg_sides(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    return _of_kind(pieces, _SOF, random, lambda body: _write(body, ">HH", 1, *_sides(random)))


def _jpeg_frame(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    """Precision, number of components, their ids, sampling factors and tables."""
    at = random.choice((0, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))
    return _of_kind(
        pieces, _SOF, random, lambda body: _write(body, ">B", at, random.choice((*_EDGES, 0x11, 0x22, 0x44, 0x14)))
    )


def _jpeg_process(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    """The frame says another process: progressive, lossless, arithmetic, ..."""
    kind = bytes([0xFF, random.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC7, 0xC8, 0xC9, 0xCA, 0xCB, 0xCF, 0xF7))])
    return [replace(piece, kind=kind) if piece.kind in _SOF else piece for piece in pieces]


def _jpeg_scan(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    return _of_kind(pieces, (b"\xff\xda",), random, lambda body: _flip_bits(body, b"", random))


def _jpeg_tables(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    return _of_kind(pieces, (b"\xff\xc4", b"\xff\xdb"), random, lambda body: blind(body, body, random))


def _jpeg_entropy(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    return _of_kind(pieces, (b"",), random, lambda body: blind(body, body[::-1], random))


def _jpeg_restarts(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    at = _index(pieces, random)
    return [*pieces[:at], Piece(b"\xff\xdd", struct.pack(">H", random.choice(_EDGES) % 65536)), *pieces[at:]]


def _jpeg_orientation(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    value = random.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535))
    return [*pieces[:1], Piece(b"\xff\xe1", b"Exif\0\0" + exif(random, value)), *pieces[1:]]


def _jpeg_adobe(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    transform = random.choice((0, 1, 2, 3, 255))
    return [*pieces[:1], Piece(b"\xff\xee", b"Adobe\0d\0\0\0\0" + bytes([transform])), *pieces[1:]]


def exif(random: Random, orientation: int) -> bytes:
    """Return a TIFF header with one directory, more or less broken."""
    order = random.choice("<>")
    count, kind = random.choice((1, 1, 1, 0, 2, 65535)), random.randrange(14)
    number = random.choice((1, 1, 0, 2, 2**31))
    entry = struct.pack(f"{order}HHIHH", 0x0112, random.choice((3, kind)), number, orientation, 0)
    tag, place = random.choice((0x8769, 0x8825, 0x010F, 0x9286)), random.choice((8, 0, 2**31))
    more = struct.pack(f"{order}HHII", tag, 4, 1, place)
    start = random.choice((8, 8, 8, 0, 7, 2**31))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", start, count)
    return head + entry + random.choice((b"", more * 20)) + struct.pack(f"{order}I", random.choice((0, 8)))


def _png_header(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    def change(body: bytes) -> bytes:
        if random.random() < 0.5:
            return _write(body, ">II", 0, *_sides(random))
        return _write(body, ">B", random.randrange(8, 13), random.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 255)))

    return _of_kind(pieces, (b"IHDR",), random, change)


def _png_filters(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    """The pixels before their compression: filter bytes, too few rows, too many."""

    def change(body: bytes) -> bytes:
        try:
            rows = zlib.decompress(body)
        except zlib.error:  # one IDAT of several
            return blind(body, body, random)
        return zlib.compress(blind(rows, rows[::-1], random), 1)

    return _of_kind(pieces, (b"IDAT",), random, change)


def _png_chunk(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    """A chunk of a known type with a body that may fit it or not."""
    kind = random.choice(_PNG_KINDS)
    body = random.choice((
        b"", random.randbytes(random.choice((1, 2, 6, 9, 26, 256, 768, 2000))), exif(random, random.randrange(10)),
        b"key\0\0" + zlib.compress(bytes(random.choice((10, 10**5, 2 * 10**6)))), b"key\0value",
        b"key\0\1\0\0\0" + b"x" * 10,
    ))  # fmt: skip
    at = 1 + random.randrange(len(pieces))
    return [*pieces[:at], Piece(kind, body), *pieces[at:]]


_PNG_KINDS = (
    b"PLTE", b"IDAT", b"IEND", b"tRNS", b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"tEXt", b"zTXt", b"iTXt", b"bKGD",
    b"hIST", b"pHYs", b"sPLT", b"tIME", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"cICP", b"vpAg",
)  # fmt: skip


def _webp_canvas(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    width, height = _sides(random)
    sides = struct.pack("<I", width & 0xFFFFFF)[:3] + struct.pack("<I", height & 0xFFFFFF)[:3]
    at = random.choice((4, 4, 6, 0))  # VP8X: canvas; ANMF: frame, its place
    return _of_kind(pieces, (b"VP8X", b"ANMF"), random, lambda body: body[:at] + sides + body[at + 6 :])


def _webp_bitstream(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    """The sides in a lossy frame (VP8, RFC 6386 section 9.1) or the head of a lossless one."""

    def change(body: bytes) -> bytes:
        if random.random() < 0.5:
            return _write(body, "<HH", 6, *(side & 0x3FFF | random.choice((0, 0xC000)) for side in _sides(random)))
        return _write(body, "<I", random.choice((0, 1, 3)), random.choice(_EDGES))

    return _of_kind(pieces, (b"VP8 ", b"VP8L"), random, change)


def _webp_flags(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    flags = Piece(b"VP8X", bytes([random.randrange(256), 0, 0, 0, 43, 0, 0, 35, 0, 0]))
    kept = [piece for piece in pieces[1:] if piece.kind != b"VP8X"]
    return [pieces[0], flags, *kept] if pieces else [flags]


def _webp_payload(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    kinds = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF", b"ANIM", b"EXIF")
    return _of_kind(pieces, kinds, random, lambda body: blind(body, body[::-1], random))


# Fields of BITMAPINFOHEADER behind the file header, by their place: sides, planes, bits, compression, bytes, colours.
_BMP_FIELDS = (("<I", 0), ("<I", 4), ("<I", 8), ("<H", 12), ("<H", 14), ("<I", 16), ("<I", 20), ("<I", 32), ("<I", 36))


def _bmp_field(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    layout, at = random.choice(_BMP_FIELDS)
    value = random.choice((*_EDGES, *_SIDES, -1, -36, -8000, 4, 12, 24, 32, 40, 64, 108, 124))
    return _bmp_info(pieces, lambda body: _write(body, layout, at, value))


def _bmp_sides(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    width, height = _sides(random)
    return _bmp_info(pieces, lambda body: _write(body, "<II", 4, width, random.choice((height, -height))))


def _bmp_coding(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    """Bits a pixel and compression that fit each other or not."""
    depth, compression = random.choice((0, 1, 2, 4, 8, 15, 16, 24, 32, 64)), random.choice((0, 1, 2, 3, 4, 5, 6, 11))
    return _bmp_info(pieces, lambda body: _write(_write(body, "<H", 14, depth), "<I", 16, compression))


def _bmp_start(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    """Where the pixels begin, as the file header says."""
    at = random.choice((0, 8))
    return [pieces[0].with_body(_write(pieces[0].body, "<I", at, random.choice(_EDGES))), *pieces[1:]]


def _bmp_pixels(pieces: Pieces, others: Pieces, random: Random) -> Pieces:
    """The pixels or run lengths: escapes, deltas out of the picture, rows without an end."""
    last = pieces[-1]
    escapes = random.choice((b"\0\2\xff\xff", b"\0\2\0\1", b"\xff\1", b"\0\xff", b"\0\0", b"\0\1")) * random.choice(
        (1, 9, 300)
    )
    at = _place(last.body, random)
    body = random.choice((last.body[:at] + escapes + last.body[at:], blind(last.body, escapes, random)))
    return [*pieces[:-1], last.with_body(body)]


def _bmp_info(pieces: Pieces, change: Callable[[bytes], bytes]) -> Pieces:
    return [piece.with_body(change(piece.body)) if index == 1 else piece for index, piece in enumerate(pieces)]


_FIELDS: dict[Format, tuple[Change, ...]] = {
    "jpeg": (
        _jpeg_sides, _jpeg_frame, _jpeg_process, _jpeg_scan, _jpeg_tables, _jpeg_entropy, _jpeg_restarts,
        _jpeg_orientation, _jpeg_adobe,
    ),
    "png": (_png_header, _png_header, _png_filters, _png_filters, _png_chunk),
    "webp": (_webp_canvas, _webp_bitstream, _webp_flags, _webp_payload),
    "bmp": (_bmp_field, _bmp_sides, _bmp_coding, _bmp_start, _bmp_pixels),
}  # fmt: skip
