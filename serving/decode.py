"""Encoded bytes to upright RGB pixels, or an error that names the fault.

Pillow reads the header, so that size and format are known before anything is decompressed. OpenCV then decodes
ordinary JPEGs, with the very pixels mmdetection trains and evaluates on; Pillow decodes the rest.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from serving.errors import CodetrError, InvalidImageError

Image8 = npt.NDArray[np.uint8]

# The format's plugin by its first bytes. The plugins are called directly: `Image.open` would warn about every image
# above a limit of its own, and answer for a JPEG with two pictures in it (MPO) with another format.
_PLUGINS: dict[str, tuple[bytes, type[ImageFile.ImageFile]]] = {
    "JPEG": (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    "PNG": (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    "WEBP": (b"RIFF", WebPImagePlugin.WebPImageFile),
    "BMP": (b"BM", BmpImagePlugin.BmpImageFile),
}

# What Pillow's plugins raise on malformed bytes, seen by feeding them damaged files.
_PLUGIN_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_JPEG_END = b"\xff\xd9"
_ORIENTATION_TAG = 0x0112

# EXIF orientation -> (transpose first?, `cv2.flip` code afterwards), EXIF 2.3 section 4.6.4.
_UPRIGHT: dict[int, tuple[bool, int | None]] = {
    2: (False, 1),
    3: (False, -1),
    4: (False, 0),
    5: (True, None),
    6: (True, 1),
    7: (True, -1),
    8: (True, 0),
}


@dataclass(frozen=True)
class ImageLimits:
    """What is refused before it is decoded: bytes as sent, pixels as the header states them, formats."""

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64_000_000  # a 64-megapixel photograph: 192 MB decoded
    formats: tuple[str, ...] = tuple(_PLUGINS)

    def __post_init__(self) -> None:
        for key in ("max_bytes", "max_pixels"):
            value = getattr(self, key)
            if value < 1:
                raise CodetrError(f"{key}: expected at least 1, got {value}")
        if not self.formats or not set(self.formats) <= set(_PLUGINS):
            raise CodetrError(f"formats: expected some of {', '.join(_PLUGINS)}, got {','.join(self.formats)!r}")


def decode_image(data: bytes, limits: ImageLimits | None = None) -> Image8:
    """Decode one image to uint8 `[h, w, 3]` RGB, upright.

    Grayscale is repeated, palettes are looked up, 16 bits are cut to their upper 8, alpha is dropped (the colours
    under it stay as they are stored): all as OpenCV, and so mmdetection, has it. CMYK is taken as Adobe writes it,
    inverted, as every common decoder does. The EXIF orientation is applied. Of an animation the first frame counts.

    Args:
        data: the file's bytes: JPEG, PNG, WebP or BMP.
        limits: what to refuse; the defaults of `ImageLimits` if None.

    Raises:
        InvalidImageError: the bytes are empty, of another format, beyond a limit, damaged or cut short.
    """
    limits = limits or ImageLimits()
    image, name = _sniff(data, limits)
    try:
        return _upright(_decode(image, name, data), _orientation(image))
    except _PLUGIN_ERRORS as error:
        raise InvalidImageError(f"damaged {name} image: {error}") from error
    except cv2.error as error:
        raise InvalidImageError(f"damaged {name} image: {error.err}") from error


def _sniff(data: bytes, limits: ImageLimits) -> tuple[ImageFile.ImageFile, str]:
    if not data:
        raise InvalidImageError("the image is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise InvalidImageError(f"the image has {len(data)} bytes, more than the limit of {limits.max_bytes}")
    name = sniff_format(data)
    if name is None or name not in limits.formats:
        raise InvalidImageError(
            f"expected a {', '.join(limits.formats)} image, got {name or 'bytes that begin with ' + repr(data[:8])}"
        )
    try:
        image = _PLUGINS[name][1](BytesIO(data))
    except _PLUGIN_ERRORS as error:
        raise InvalidImageError(f"damaged {name} header: {error}") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImageError(f"the {name} header claims {width}x{height} pixels")
    if width * height > limits.max_pixels:
        raise InvalidImageError(
            f"the image has {width}x{height} pixels, more than the limit of {limits.max_pixels} in all"
        )
    return image, name


def _decode(image: ImageFile.ImageFile, name: str, data: bytes) -> Image8:
    if name == "JPEG" and image.mode in ("RGB", "L"):
        # Whether OpenCV refuses a truncated file or fills it with gray is up to its release. The entropy-coded data
        # cannot hold the end marker, so its absence behind the start of scan (where Pillow stopped reading) tells.
        if data.find(_JPEG_END, _position(image)) < 0:
            raise InvalidImageError("damaged JPEG image: it is cut short, its end marker is missing")
        return _decode_with_opencv(data)
    image.load()
    if image.mode.startswith("I"):  # 16-bit grayscale
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    image.info.pop("transparency", None)  # or converting a palette would weigh it, with a warning
    return np.array(image.convert("RGB"))


def _position(image: ImageFile.ImageFile) -> int:
    return image.fp.tell() if image.fp is not None else 0


def _decode_with_opencv(data: bytes) -> Image8:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise InvalidImageError("damaged JPEG image: it cannot be decoded")
    decoded: Image8 = pixels
    return decoded


def _orientation(image: ImageFile.ImageFile) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except _PLUGIN_ERRORS:
        return 1  # broken metadata do not make the pixels unusable


def _upright(pixels: Image8, orientation: int) -> Image8:
    transpose, flip = _UPRIGHT.get(orientation, (False, None))
    upright: Any = cv2.transpose(pixels) if transpose else pixels
    if flip is not None:
        upright = cv2.flip(upright, flip)
    result: Image8 = upright
    return result


def sniff_format(data: bytes) -> str | None:
    """Return the format that the first bytes name, of those that this module knows; nothing is decoded."""
    return next((name for name, (magic, _) in _PLUGINS.items() if data.startswith(magic)), None)


def claimed_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in pixels that a header claims; None where it cannot be read. Nothing is decoded."""
    name = sniff_format(data)
    try:
        return None if name is None else _PLUGINS[name][1](BytesIO(data)).size
    except _PLUGIN_ERRORS:
        return None
