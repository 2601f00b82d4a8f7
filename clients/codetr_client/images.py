"""Images as callers have them, turned into the encoded bytes that travel to the server."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from codetr_client.errors import InvalidImageError

# A path, an encoded image, a Pillow image, or RGB uint8 [H, W, 3].
ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]"

# What PNG can hold and the server decodes; other modes travel as RGB.
PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


def encode(image: ImageInput) -> bytes:
    """Return the bytes to send: files and bytes as they are, pixels as PNG.

    PNG because it is lossless (the boxes are those of the caller's own pixels), at its fastest setting because the
    size matters less than the wait. Where bandwidth matters, encode a JPEG and pass its bytes.
    Raises InvalidImageError for an unreadable file and for arrays that are not RGB uint8 [H, W, 3].
    """
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        return _png(ImageOps.exif_transpose(image))
    if isinstance(image, np.ndarray):
        return _png(_from_array(image))
    return read_bytes(image)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of the file `path`; raises InvalidImageError if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidImageError(f"cannot read {os.fspath(path)}: {error.strerror}") from error


def open_upright(image: ImageInput) -> Image.Image:
    """Return the picture as upright RGB (EXIF orientation applied), for drawing on it.

    Raises InvalidImageError for what Pillow cannot read.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _eight_bit(ImageOps.exif_transpose(image)).convert("RGB")
    content = image if isinstance(image, bytes) else read_bytes(image)
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return _eight_bit(ImageOps.exif_transpose(opened)).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidImageError(f"cannot decode the picture: {error}") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    # Pillow's own conversion of 16-bit gray clips at 255, which shows a white picture.
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InvalidImageError(f"an array must be RGB uint8 [H, W, 3], not {array.dtype} {list(array.shape)}")
    return Image.fromarray(np.ascontiguousarray(array))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    (image if image.mode in PNG_MODES else image.convert("RGB")).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
