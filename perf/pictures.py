"""Pictures to measure with: made from a seed, as hard to compress as photographs, in every format served."""

from __future__ import annotations

import io
from typing import Any, Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

Format = Literal["jpeg", "jpeg-progressive", "jpeg-gray", "png", "webp", "bmp"]
FORMATS: tuple[Format, ...] = get_args(Format)

# Pillow's name and settings: what cameras and web sites write.
_ENCODERS: dict[Format, tuple[str, dict[str, Any]]] = {
    "jpeg": ("JPEG", {"quality": 90}),
    "jpeg-progressive": ("JPEG", {"quality": 90, "progressive": True}),
    "jpeg-gray": ("JPEG", {"quality": 90}),
    "png": ("PNG", {"compress_level": 6}),
    "webp": ("WEBP", {"quality": 85, "method": 2}),
    "bmp": ("BMP", {}),
}


def picture(width: int, height: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return a seeded RGB picture, uint8 [height, width, 3]: soft shapes at every scale plus sensor noise.

    Amplitudes fall with 1 / frequency as in photographs, so that a JPEG of it costs as much to decode as theirs
    (1.4 to 2.2 bits a pixel at quality 90), which flat colours or white noise would not.
    """
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 127.5, np.float32)
    cells = 2
    while cells < max(width, height):
        # mostly brightness, as in photographs: the three channels share most of each cell's value
        grid = random.normal(size=(cells, cells, 1)) + 0.3 * random.normal(size=(cells, cells, 3))
        layer = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        pixels += layer * (80.0 / cells**0.5)
        cells *= 2
    pixels += random.normal(scale=2.0, size=(height, width, 1)).astype(np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def encode(pixels: npt.NDArray[np.uint8], image_format: Format) -> bytes:
    """Return RGB uint8 [H, W, 3] as encoded bytes."""
    image = Image.fromarray(pixels)
    name, settings = _ENCODERS[image_format]
    buffer = io.BytesIO()
    (image.convert("L") if image_format == "jpeg-gray" else image).save(buffer, name, **settings)
    return buffer.getvalue()


def encoded_picture(width: int, height: int, image_format: Format = "jpeg", seed: int = 0) -> bytes:
    """Return a seeded picture of `width` x `height` pixels as encoded bytes."""
    return encode(picture(width, height, seed), image_format)
