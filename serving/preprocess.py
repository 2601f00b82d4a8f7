"""Pixels to the engine's input: keep-ratio resize into the top-left corner of a fixed canvas."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from serving.decode import ImageLimits, Pixels, decode_image


class Preprocessed(NamedTuple):
    """One image as the engine takes it, and what is needed to find the way back."""

    images: Pixels  # uint8 [H, W, 3] RGB
    image_size: tuple[int, int]  # valid (height, width) in pixels of `images`
    original_size: tuple[int, int]  # (height, width) of the upright original in pixels


def preprocess(data: bytes, height: int, width: int, limits: ImageLimits | None = None) -> Preprocessed:
    """Decode one encoded image and fit it into an engine's `height` x `width`.

    Raises:
        InvalidImageError: as `decode_image`.
    """
    image = decode_image(data, limits)
    images, image_size = resize_and_pad(image, height, width)
    return Preprocessed(images, image_size, (image.shape[0], image.shape[1]))


def resize_and_pad(image: Pixels, height: int, width: int) -> tuple[Pixels, tuple[int, int]]:
    """Resize an image to the largest size of its own ratio within `height` x `width`, and pad it.

    The rule is mmcv's `imrescale` (side = int(side * scale + 0.5), bilinear on uint8, no antialiasing) with the
    scale chosen for the engine's orientation. The padding is 0 here and is zeroed again by the engine after
    normalisation, as mmdetection has it.

    Args:
        image: uint8 `[h, w, 3]`.
        height: the engine's height in pixels.
        width: the engine's width in pixels.

    Returns:
        uint8 `[height, width, 3]` with the image at the top left, and the (height, width) it fills, each at least 1.
    """
    h, w = image.shape[:2]
    scale = min(width / w, height / h)
    valid_h = min(max(int(h * scale + 0.5), 1), height)
    valid_w = min(max(int(w * scale + 0.5), 1), width)
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[:valid_h, :valid_w] = cv2.resize(image, (valid_w, valid_h), interpolation=cv2.INTER_LINEAR)
    return canvas, (valid_h, valid_w)
