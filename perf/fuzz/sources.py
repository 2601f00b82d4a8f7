"""Whole files of every format and kind that the service takes, which the fuzzer mutates."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from perf.fuzz.pieces import Format, Piece, join, split
from perf.pictures import picture

WIDTH, HEIGHT = 44, 36  # no multiple of a JPEG block or of 8 pixels of 1 bit
EXIF_ORIENTATION = 0x0112

Array = npt.NDArray[Any]
# Adam7 (PNG 1.2, section 2.6): first row and column, and steps, of each pass.
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


@cache
def sources() -> dict[Format, dict[str, bytes]]:
    """Return the files by format and by kind; the same in every process."""
    return {"jpeg": _jpegs(), "png": _pngs(), "webp": _webps(), "bmp": _bmps()}


@cache
def _pixels() -> Array:
    return picture(WIDTH, HEIGHT, seed=19)


def _image() -> Image.Image:
    return Image.fromarray(_pixels())


def _rgba() -> Image.Image:
    alpha = np.linspace(0, 255, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH, 1).astype(np.uint8)
    return Image.fromarray(np.concatenate([_pixels(), alpha], axis=2))


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    exif[0x010F] = "Maker"
    return exif.tobytes()


# A profile need not mean anything: it is carried, not applied.
_PROFILE = bytes(range(256)) * 3


def _jpegs() -> dict[str, bytes]:
    image = _image()
    return {
        "baseline": _saved(image, "JPEG", quality=80),
        "progressive": _saved(image, "JPEG", quality=80, progressive=True),
        "4:4:4": _saved(image, "JPEG", quality=90, subsampling=0),
        "restarts": _saved(image, "JPEG", quality=80, restart_marker_blocks=2),
        "gray": _saved(image.convert("L"), "JPEG"),
        "gray progressive": _saved(image.convert("L"), "JPEG", progressive=True),
        "CMYK": _saved(image.convert("CMYK"), "JPEG"),
        "CMYK progressive": _saved(image.convert("CMYK"), "JPEG", progressive=True),
        "rotated": _saved(image, "JPEG", exif=_exif(6)),
        "with all metadata": _saved(
            image, "JPEG", exif=_exif(8), icc_profile=_PROFILE, comment=b"a comment", dpi=(72, 72)
        ),
        "MPO": _saved(image, "MPO", save_all=True, append_images=[image.transpose(Image.Transpose.ROTATE_180)]),
        "bytes behind its end": _saved(image, "JPEG") + b"trailer",
    }  # fmt: skip


def _pngs() -> dict[str, bytes]:
    image, frame = _image(), _image().transpose(Image.Transpose.ROTATE_180)
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a title")
    text.add_text("Comment", "compressed " * 20, zip=True)
    text.add_itxt("Author", "name", "en", "Autor", zip=True)
    whole = {f"colour {colour}, {depth} bit": png(colour, depth) for colour, depth in _PNG_KINDS}
    interlaced = {
        f"{name}, interlaced": png(*kind, interlaced=True) for name, kind in zip(whole, _PNG_KINDS, strict=True)
    }
    return {
        **whole,
        **interlaced,
        "with all metadata": _saved(image, "PNG", pnginfo=text, icc_profile=_PROFILE, exif=_exif(3), dpi=(72, 72)),
        "animated": _saved(image, "PNG", save_all=True, append_images=[frame]),
        "several IDAT": _cut_idat(_saved(image, "PNG")),
        "transparent palette": _saved(image.quantize(16), "PNG", transparency=bytes([0, 128, 255])),
        "transparent colour": _saved(image, "PNG", transparency=(1, 2, 3)),
    }  # fmt: skip


# Every colour type and depth that PNG has (section 4.1.1).
_PNG_KINDS = tuple(
    (colour, depth)
    for colour, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items()
    for depth in depths
)


def png(colour: int, depth: int, interlaced: bool = False) -> bytes:
    """Return a PNG of one of the format's own colour types and bit depths, written here: no library writes them all."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, int(interlaced))
    values = _samples(_PNG_CHANNELS[colour])
    passes = [values[y::down, x::right] for y, x, down, right in _ADAM7] if interlaced else [values]
    rows = b"".join(b"\0" + _packed(row, depth) for each in passes for row in each)
    palette = [Piece(b"PLTE", (bytes(range(256)) * 3)[: 3 * 2**depth])] if colour == 3 else []
    body = Piece(b"IDAT", zlib.compress(rows))
    return join("png", [Piece(b"IHDR", header), *palette, body, Piece(b"IEND", b"")])


def _samples(channels: int) -> Array:
    """Return samples `[HEIGHT, WIDTH, channels]` in 0..1."""
    image = _rgba() if channels in (2, 4) else _image()
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    return np.asarray(image.convert(mode)).reshape(HEIGHT, WIDTH, channels) / 255


def _packed(row: Array, depth: int) -> bytes:
    values = np.round(row.reshape(-1) * (2**depth - 1)).astype(">u2" if depth == 16 else np.uint8)
    if depth >= 8:
        return values.tobytes()
    bits = np.unpackbits(values[:, None], axis=1)[:, 8 - depth :]
    return np.packbits(bits.reshape(-1)).tobytes()


def _cut_idat(data: bytes) -> bytes:
    pieces = split("png", data)
    at = next(index for index, piece in enumerate(pieces) if piece.kind == b"IDAT")
    body = pieces[at].body
    pieces[at : at + 1] = [Piece(b"IDAT", body[start : start + 200]) for start in range(0, len(body), 200)]
    return join("png", pieces)


def _webps() -> dict[str, bytes]:
    image, frame = _image(), _image().transpose(Image.Transpose.ROTATE_180)
    return {
        "lossy": _saved(image, "WEBP", quality=80),
        "lossless": _saved(image, "WEBP", lossless=True),
        "lossless palette": _saved(image.quantize(8).convert("RGB"), "WEBP", lossless=True),
        "lossy with alpha": _saved(_rgba(), "WEBP", quality=80),
        "lossless with alpha": _saved(_rgba(), "WEBP", lossless=True, exact=True),
        "animated": _saved(image, "WEBP", save_all=True, append_images=[frame], duration=40),
        "animated lossless": _saved(
            _rgba(), "WEBP", save_all=True, append_images=[frame.convert("RGBA")], lossless=True
        ),
        "with all metadata": _saved(image, "WEBP", exif=_exif(5), icc_profile=_PROFILE, xmp=b"<x/>"),
    }  # fmt: skip


def _bmps() -> dict[str, bytes]:
    image = _image()
    gray = np.asarray(image.convert("L"))
    indices = (gray // 16).astype(np.uint8)
    colours = b"".join(bytes([level, level, level, 0]) for level in range(0, 256, 16))
    red, green, blue = (np.asarray(image)[..., channel].astype(np.uint16) for channel in range(3))
    bitfields = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    return {
        "24 bit": _saved(image, "BMP"),
        "32 bit": _saved(_rgba(), "BMP"),
        "8 bit gray": _saved(image.convert("L"), "BMP"),
        "8 bit palette": _saved(image.quantize(16), "BMP"),
        "1 bit": _saved(image.convert("1"), "BMP"),
        "4 bit": bmp(4, 0, colours, _bmp_rows(_nibbles(indices))),
        "16 bit": bmp(16, 0, b"", _bmp_rows(((red >> 3) << 10) | ((green >> 3) << 5) | (blue >> 3))),
        "16 bit fields": bmp(16, 3, bitfields, _bmp_rows(((red >> 3) << 11) | ((green >> 2) << 5) | (blue >> 3))),
        "RLE8": bmp(8, 1, colours, _run_lengths(indices, HEIGHT)),
        "RLE4": bmp(4, 2, colours, _run_lengths(indices * 17, HEIGHT)),
        "top down": _top_down(_saved(image, "BMP")),
        "OS/2": _os2(np.asarray(image)),
    }


def bmp(depth: int, compression: int, palette: bytes, pixels: bytes) -> bytes:
    """Return a BMP with an information header of 40 bytes, for what no library here writes."""
    start = 54 + len(palette)
    colours = 16 if compression in (1, 2) or depth == 4 else 0
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, depth, compression, len(pixels), 2835, 2835, colours, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + header + palette + pixels


def _bmp_rows(rows: Array) -> bytes:
    """Return rows from the bottom up, each of a multiple of 4 bytes."""
    packed = (np.ascontiguousarray(row).tobytes() for row in rows[::-1])
    return b"".join(row + b"\0" * (-len(row) % 4) for row in packed)


def _nibbles(indices: Array) -> Array:
    return (indices[:, 0::2] << 4) | indices[:, 1::2]


def _run_lengths(values: Array, rows: int) -> bytes:
    """Return each row as runs of at most 8 equal pixels, and an absolute run and a delta for the decoder to meet."""
    lines = []
    for row in values[::-1][:rows]:
        line = b"".join(bytes([4, value]) for value in row[: WIDTH - 8 : 4])
        lines.append(line + bytes([0, 4, *row[:4]]) + bytes([0, 2, 4, 0]) + b"\0\0")
    return b"".join(lines) + b"\0\1"


def _top_down(data: bytes) -> bytes:
    changed = bytearray(data)
    struct.pack_into("<i", changed, 22, -HEIGHT)
    return bytes(changed)


def _os2(pixels: Array) -> bytes:
    rows = _bmp_rows(pixels[..., ::-1].reshape(HEIGHT, -1))
    header = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
    return b"BM" + struct.pack("<IHHI", 26 + len(rows), 0, 0, 26) + header + rows
