"""Images as callers have them, turned into the encoded bytes that travel to the server."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from codetr_client.containers import READERS, image_format
from codetr_client.errors import InvalidImageError
from codetr_client.exif import ORIENTATION, read_orientation
from codetr_client.inputs import read_file
from codetr_client.jpeg import END, fault, reaches_the_end, read_jpeg, without_metadata


@runtime_checkable
class BinaryFile(Protocol):
    """An open file, read from where it stands."""

    def read(self) -> bytes:
        """Return the bytes up to its end."""


# A path, an encoded image, an open file of one, a Pillow image, or RGB uint8 [H, W, 3].
ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | npt.NDArray[np.uint8]"
)

# What PNG holds and the server decodes to the colours that Pillow shows; other modes travel as RGB.
PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
# Pillow turns these into RGB only by way of another mode.
_UNMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}

# What Pillow raises on files that are damaged, cut short or closed, up to and including its release 13.
_PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, LookupError, EOFError, TypeError, AttributeError, ArithmeticError,
    AssertionError, MemoryError, NotImplementedError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Metadata that Pillow takes an orientation from, where there is none in EXIF; OpenCV and the server do not.
_NO_EXIF = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def encode(image: ImageInput) -> bytes:
    """Return the bytes to send: files and bytes as they are, pixels as PNG without metadata.

    PNG because it is lossless (the boxes are those of the caller's own pixels), at its fastest setting because the
    size matters less than the wait. Where bandwidth matters, encode a JPEG and pass its bytes.

    Of pixels with 16 bits the upper 8 travel, as the server has it of a file. Pillow's mode I is taken for 16 bits.

    Raises:
        InvalidImageError: a file cannot be read; a Pillow image cannot be loaded or its mode has no defined colours;
            an array is not RGB uint8 [H, W, 3]; or it is nothing of all that.
    """
    if isinstance(image, Image.Image):
        _check_jpeg(image)
        return _png(_from_pillow(image))
    if isinstance(image, np.ndarray):
        return _png(_from_array(image))
    return _content(image)


def encode_all(images: Iterable[ImageInput]) -> list[bytes]:
    """Return the bytes to send of several images, as `encode`; an array of them is RGB uint8 [N, H, W, 3].

    Raises:
        InvalidImageError: one of them is no image, or they are one image, whose parts are none.
    """
    one = (str, bytes, bytearray, memoryview, os.PathLike, BinaryFile, Image.Image)
    is_one = images.ndim < 4 if isinstance(images, np.ndarray) else isinstance(images, one)
    if is_one or not isinstance(images, Iterable):
        raise InvalidImageError(
            f"several images must be a sequence of them, such as [image], not one {type(images).__name__}; "
            "detect takes one"
        )
    return [encode(image) for image in images]


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of the file `path`; raises InvalidImageError if it cannot be read."""
    try:
        return read_file(path)
    except OSError as error:
        raise InvalidImageError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error
    except ValueError as error:  # a null byte in it
        raise InvalidImageError(f"cannot read {os.fspath(path)!r}: {error}") from error


def open_upright(image: ImageInput) -> Image.Image:
    """Return the picture as upright RGB (EXIF orientation applied), for drawing on it.

    Raises InvalidImageError for what Pillow cannot read.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _from_pillow(image).convert("RGB")
    content, exif = _without_metadata(_content(image))
    with _typed_errors(), Image.open(io.BytesIO(content)) as opened:
        return _from_pillow(opened, None if exif is None else read_orientation(exif)).convert("RGB")


def _check_jpeg(image: Image.Image) -> None:
    """Refuse a JPEG that Pillow would fill with gray without a word; once it is loaded nothing can be told any more."""
    file = getattr(image, "fp", None)
    if file is None or image.format not in ("JPEG", "MPO"):
        return
    try:
        place = file.tell()
        file.seek(0)
        content = file.read()
        file.seek(place)
        jpeg = read_jpeg(content)
    except (OSError, ValueError, InvalidImageError):  # loading it says what is wrong
        return
    missing = fault(jpeg, content)
    if missing is None and not reaches_the_end(jpeg, content):
        missing = "its data end before its last row"
    if missing is not None:
        raise InvalidImageError(f"damaged JPEG image: {missing}; a server may accept it: give its path or its bytes")


def _content(image: str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return read_bytes(image)
    if not isinstance(image, BinaryFile):
        raise InvalidImageError(
            f"an image must be a path, encoded bytes, an open file, a Pillow image or RGB uint8 [H, W, 3], not "
            f"{type(image).__name__}"
        )
    try:
        content = image.read()
    except (OSError, ValueError) as error:  # closed, or opened for writing
        raise InvalidImageError(f"cannot read the open file: {error}") from error
    if not isinstance(content, bytes):
        raise InvalidImageError(f"an open file must be read as bytes, not {type(content).__name__}: open it with 'rb'")
    if not content:
        raise InvalidImageError("the open file has nothing left to read; if it was read before, seek(0) goes back")
    return content


def _without_metadata(content: bytes) -> tuple[bytes, bytes | None]:
    """Return an encoded image without what could keep Pillow from its pixels, and its EXIF data.

    The EXIF data are None of a format that the server does not know: there Pillow looks for them.
    """
    name = image_format(content)
    try:
        if name == "JPEG":
            jpeg = read_jpeg(content)
            pixels = without_metadata(content, jpeg)
            return pixels if jpeg.is_ended else pixels + END, jpeg.exif
        if name is not None:
            container = READERS[name](content)
            return container.pixels, container.exif
    except InvalidImageError:  # let Pillow say what it is
        pass
    return content, None


@contextmanager
def _typed_errors() -> Iterator[None]:
    try:
        yield
    except InvalidImageError:
        raise
    except _PILLOW_ERRORS as error:
        raise InvalidImageError(f"cannot decode the picture: {error}") from error


def _from_pillow(image: Image.Image, orientation: int | None = None) -> Image.Image:
    """Return a Pillow image upright, with 8 bits a channel, in one of `PNG_MODES` and without metadata."""
    with _typed_errors():
        _load(image)
        if 0 in image.size:
            raise InvalidImageError(f"an image must have pixels, not {image.width}x{image.height}")
        method = _UPRIGHT.get(_orientation(image) if orientation is None else orientation)
        plain = _eight_bit(image)
        if method is not None:
            plain = plain.transpose(method)
        elif plain is image:
            plain = image.copy()
        plain.info = {}
        return plain


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except _PILLOW_ERRORS:
        image.load()  # succeeds if only metadata behind the pixels were at fault


def _orientation(image: Image.Image) -> int:
    """Return the orientation in an image's EXIF data: those that were set on it, else those of its file."""
    exif = image.info.get("exif")
    stored = read_orientation(exif) if isinstance(exif, bytes) else 1
    if getattr(image, "_exif", None) is None or any(key in image.info for key in _NO_EXIF):
        return stored  # nobody asked for it yet, so that nothing was set; or Pillow would answer with something else
    try:
        found = image.getexif().get(ORIENTATION, stored)  # some releases of Pillow stop reading at a fault
    except _PILLOW_ERRORS:  # broken metadata do not cost the pixels
        return stored
    return found if isinstance(found, int) else 1


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in PNG_MODES:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _upper_bits(image)
    if image.mode == "F":
        raise InvalidImageError("Pillow's mode F has no defined range: scale it to 0..255 and convert it to L")
    try:
        return image.convert(_UNMULTIPLIED.get(image.mode, "RGB"))
    except (ValueError, ImportError) as error:  # LAB needs a part of Pillow that can be left out
        raise InvalidImageError(f"Pillow's mode {image.mode} cannot be sent: convert it to RGB ({error})") from error


def _upper_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit gray as 8-bit gray. Pillow's own conversion clips at 255, which gives a white picture."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise InvalidImageError(
            f"Pillow's mode {image.mode} must hold 16 bits, 0..65535, not {low}..{high}: scale it and convert it to L"
        )
    if image.mode == "I" and 0 < high <= 0xFF:  # the upper 8 bits would be black; more likely these are all there are
        raise InvalidImageError("Pillow's mode I must hold 16 bits, but no value is above 255: convert it to L")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InvalidImageError(
            f"an array must be RGB uint8 [H, W, 3], not {array.dtype} {list(array.shape)}{_array_advice(array)}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _array_advice(array: npt.NDArray[np.uint8]) -> str:
    if array.dtype == np.uint16:
        return ": keep the upper 8 bits, (array >> 8).astype(np.uint8)"
    if array.dtype != np.uint8:
        return ": scale it to 0..255 and use astype(np.uint8)"
    if array.ndim == 2:
        return ": repeat it, np.repeat(array[..., None], 3, axis=2)"
    if array.ndim == 3 and array.shape[2] == 4:
        return ": drop its alpha, array[..., :3]"
    if array.ndim == 3 and array.shape[0] == 3:
        return ": put the channels last, array.transpose(1, 2, 0)"
    return ""


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
