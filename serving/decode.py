"""Encoded bytes to upright RGB pixels, or an error that names the fault.

The file's structure is read first (`codetr_client.containers`, `codetr_client.jpeg`): size and format are known before
anything is decompressed, and no metadata, whatever state they are in, decide about anything but the orientation. OpenCV
decodes, to the very pixels mmdetection trains and evaluates on; Pillow decodes CMYK, and what OpenCV cannot.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from codetr_client import containers, jpeg
from codetr_client.exif import read_orientation
from serving.errors import CodetrError, InvalidImageError

Image8 = npt.NDArray[np.uint8]
OnDamage = Literal["refuse", "accept"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# Called directly: `Image.open` would warn about every image above a limit of its own.
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}

# What Pillow's plugins raise on malformed bytes, seen by feeding them damaged files.
PLUGIN_ERRORS = (
    OSError, SyntaxError, ValueError, LookupError, EOFError, TypeError, ArithmeticError, AssertionError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

# The longest side that a JPEG can have. Longer ones are made to trouble decoders: 1 x 64 million pixels take 127 kB to
# send and 5 s to resize, and a line of 64 million is more than Pillow can hold.
MAX_SIDE = 65535

# EXIF orientation -> (transpose first?, `cv2.flip` code afterwards), EXIF 2.3 section 4.6.4.
UPRIGHT: dict[int, tuple[bool, int | None]] = {
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
    formats: tuple[str, ...] = FORMATS
    damaged_jpeg: OnDamage = "refuse"  # one whose data end too early; accepted, its lower part is gray or coarse

    def __post_init__(self) -> None:
        for key in ("max_bytes", "max_pixels"):
            value = getattr(self, key)
            if value < 1:
                raise CodetrError(f"{key}: expected at least 1, got {value}")
        if not self.formats or not set(self.formats) <= set(FORMATS):
            raise CodetrError(f"formats: expected some of {', '.join(FORMATS)}, got {','.join(self.formats)!r}")
        if self.damaged_jpeg not in get_args(OnDamage):
            raise CodetrError(f"damaged_jpeg: expected refuse or accept, got {self.damaged_jpeg!r}")


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
    name = _format(data, limits)
    try:
        return _decode_jpeg(data, limits) if name == "JPEG" else _decode_other(data, name, limits)
    except PLUGIN_ERRORS as error:
        raise InvalidImageError(f"damaged {name} image: {str(error) or type(error).__name__}") from error
    except cv2.error as error:
        raise InvalidImageError(f"damaged {name} image: {error.err}") from error


def _format(data: bytes, limits: ImageLimits) -> str:
    if not data:
        raise InvalidImageError("the image is empty (0 bytes)")
    if len(data) > limits.max_bytes:
        raise InvalidImageError(f"the image has {len(data)} bytes, more than the limit of {limits.max_bytes}")
    name = containers.image_format(data)
    if name is None or name not in limits.formats:
        raise InvalidImageError(
            f"expected a {', '.join(limits.formats)} image, got {name or 'bytes that begin with ' + repr(data[:8])}"
        )
    return name


def is_within(width: int, height: int, limits: ImageLimits) -> bool:
    """Return whether an image of `width` x `height` pixels is within the limits."""
    try:
        _check_size("", width, height, limits)
    except InvalidImageError:
        return False
    return True


def _check_size(name: str, width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise InvalidImageError(f"the {name} header claims {width}x{height} pixels")
    if width * height > limits.max_pixels:
        raise InvalidImageError(
            f"the image has {width}x{height} pixels, more than the limit of {limits.max_pixels} in all"
        )
    if max(width, height) > MAX_SIDE:
        raise InvalidImageError(f"the image has {width}x{height} pixels, but no side may be longer than {MAX_SIDE}")


def _decode_jpeg(data: bytes, limits: ImageLimits) -> Image8:
    markers = jpeg.read_jpeg(data)
    _check_size("JPEG", markers.width, markers.height, limits)
    is_strict = limits.damaged_jpeg == "refuse"
    if is_strict and (fault := jpeg.fault(markers, data)) is not None:
        raise _damaged(fault)
    # Whether OpenCV refuses a file without the marker, or fills it up, is up to its release.
    complete = data if markers.is_ended or not markers.scans else data[: markers.scans[-1].end] + jpeg.END
    if markers.is_cmyk:
        pixels = _decode_with_pillow("JPEG", jpeg.without_metadata(complete, markers), markers.width, markers.height)
    elif (decoded := _decode_with_opencv(complete)) is not None:
        pixels = decoded
    else:
        raise _damaged("it cannot be decoded")
    # To ask costs about half a decoding, so only a picture whose last pixel looks missing is asked about.
    looks_missing = markers.is_cmyk or (pixels[-1, -1] == jpeg.MISSING).all()
    if is_strict and looks_missing and not jpeg.reaches_the_end(markers, data):
        raise _damaged("its data end before its last row")
    return _finished(pixels, "JPEG", markers.width, markers.height, markers.exif)


def _damaged(fault: str) -> InvalidImageError:
    return InvalidImageError(f"damaged JPEG image: {fault}")


def _decode_other(data: bytes, name: str, limits: ImageLimits) -> Image8:
    container = containers.READERS[name](data)
    _check_size(name, container.width, container.height, limits)
    pixels = _decode_with_opencv(container.pixels)
    if pixels is None:
        pixels = _decode_with_pillow(name, container.pixels, container.width, container.height)
    return _finished(pixels, name, container.width, container.height, container.exif)


def _decode_with_opencv(data: bytes) -> Image8 | None:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels: Any = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return None if pixels is None else pixels


def _decode_with_pillow(name: str, data: bytes, width: int, height: int) -> Image8:
    image = _PLUGINS[name](BytesIO(data))
    if image.size != (width, height):  # a second header, of a size that nobody has checked
        raise _of_two_sizes(name, (width, height), image.size)
    image.load()
    if image.mode.startswith("I"):  # 16-bit grayscale
        gray = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def _finished(pixels: Image8, name: str, width: int, height: int, exif: bytes) -> Image8:
    if pixels.shape[:2] != (height, width):  # what was checked is not what was decoded
        raise _of_two_sizes(name, (width, height), (pixels.shape[1], pixels.shape[0]))
    return _upright(pixels, read_orientation(exif))


def _of_two_sizes(name: str, claimed: tuple[int, int], found: tuple[int, int]) -> InvalidImageError:
    (width, height), (w, h) = claimed, found
    return InvalidImageError(f"damaged {name} image: its header claims {width}x{height} pixels, it has {w}x{h}")


def _upright(pixels: Image8, orientation: int) -> Image8:
    transpose, flip = UPRIGHT.get(orientation, (False, None))
    upright: Any = cv2.transpose(pixels) if transpose else pixels
    if flip is not None:
        upright = cv2.flip(upright, flip)
    result: Image8 = upright
    return result


def claimed_size(data: bytes) -> tuple[int, int] | None:
    """Return the (width, height) in pixels that a header claims; None where it cannot be read. Nothing is decoded."""
    name = containers.image_format(data)
    try:
        return None if name is None else _PLUGINS[name](BytesIO(data)).size
    except PLUGIN_ERRORS:
        return None
