"""The resizing of `serving.preprocess` on tensors of any device: the same pixels, to the last bit.

Sources: OpenCV 4's `resize` of 8-bit images (INTER_LINEAR, and INTER_AREA at half the size) and Pillow's `resample`
(BILINEAR). Both compute in integers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from serving.preprocess import DEFAULT_PIXELS, valid_size
from serving.rules import Pixels

if TYPE_CHECKING:  # the server needs no PyTorch without a GPU
    import torch
    from torch import Tensor

_OPENCV_BITS = 11  # of a weight
_PILLOW_BITS = 32 - 8 - 2
_KEPT_SIZES = 256  # whose weights are kept


def resize_and_pad(
    image: Tensor, height: int, width: int, rule: Pixels = DEFAULT_PIXELS
) -> tuple[Tensor, tuple[int, int]]:
    """Resize an image by a rule, at most to `height` x `width`, and pad it with zeros below and at the right.

    Args:
        image: uint8 `[h, w, 3]`.
        height: the engine's height in pixels.
        width: the engine's width in pixels.
        rule: of the engine.

    Returns:
        uint8 `[height, width, 3]` on the image's device, and the (height, width) that the image fills of it.
    """
    h, w = valid_size(image.shape[0], image.shape[1], height, width, rule)
    canvas = image.new_zeros((height, width, 3))
    canvas[:h, :w] = _antialiased(image, h, w) if rule.antialias else _linear(image, h, w)
    return canvas, (h, w)


def _linear(image: Tensor, height: int, width: int) -> Tensor:
    """Return what OpenCV makes of an image, uint8 `[height, width, 3]`."""
    h, w, _ = image.shape
    if (h, w) == (height, width):
        return image
    if (h, w) == (2 * height, 2 * width):  # the mean of an area
        squares = image.unflatten(1, (width, 2)).unflatten(0, (height, 2)).int()
        return ((squares.sum((1, 3)) + 2) >> 2).byte()
    left, right, near, far = _taps(w, width, True, image.device)
    upper, lower, above, below = _taps(h, height, False, image.device)
    sums = []
    for rows in (upper, lower):
        line = image[rows]
        sums.append((line[:, left].int() * near[:, None] + line[:, right].int() * far[:, None]) >> 4)
    total = ((sums[0] * above[:, None, None]) >> 16) + ((sums[1] * below[:, None, None]) >> 16)
    return ((total + 2) >> 2).byte()


@lru_cache(_KEPT_SIZES)
def _taps(count: int, size: int, is_row: bool, device: torch.device) -> tuple[Tensor, ...]:
    """Return the two neighbours of each of `size` pixels among `count`, and their weights of 2048 together, int32.

    At the borders of a row the neighbour beyond has no weight; a row beyond the image is its first or last one, and
    keeps its weight.
    """
    place = ((np.arange(size) + 0.5) * (1.0 / (size / count)) - 0.5).astype(np.float32)
    index = np.floor(place).astype(np.int64)
    place -= index.astype(np.float32)
    if is_row:
        place[(index < 0) | (index >= count - 1)] = 0
        index = index.clip(0, count - 1)
    scale = np.float32(1 << _OPENCV_BITS)
    weights = (np.rint(weight * scale).astype(np.int32) for weight in (np.float32(1) - place, place))
    places = (index.clip(0, count - 1), (index + 1).clip(0, count - 1))
    return tuple(_on(device, each) for each in (*places, *weights))


def _antialiased(image: Tensor, height: int, width: int) -> Tensor:
    """Return what Pillow makes of an image, across and then down, uint8 `[height, width, 3]`."""
    if image.shape[1] != width:
        image = _filtered(image.transpose(0, 1), width).transpose(0, 1)
    return image if image.shape[0] == height else _filtered(image, height)


def _filtered(image: Tensor, size: int) -> Tensor:
    """Return `size` rows in place of an image's own, uint8 `[size, w, 3]`."""
    places, weights = _filters(image.shape[0], size, image.device)
    total = image.new_zeros((size, *image.shape[1:])).int() + (1 << (_PILLOW_BITS - 1))
    for place, weight in zip(places, weights, strict=True):
        total += image[place].int() * weight[:, None, None]
    return (total >> _PILLOW_BITS).clamp(0, 255).byte()


@lru_cache(_KEPT_SIZES)
def _filters(count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the places that each of `size` rows reads among `count`, and their weights: both `[reads, size]`."""
    scale = count / size
    reach = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    end = np.minimum((centres + reach + 0.5).astype(np.int64), count)
    places = first + np.arange(math.ceil(reach) * 2 + 1)[:, None]  # [reads, size]
    weights = np.maximum(1.0 - np.abs((places - centres + 0.5) * (1.0 / reach)), 0.0) * (places < end)
    sums = np.zeros(size)
    for row in weights:  # one after the other, as Pillow adds them
        sums += row
    weights /= np.where(sums == 0, 1.0, sums)
    fixed = (weights * (1 << _PILLOW_BITS) + 0.5).astype(np.int32)
    return _on(device, places.clip(0, count - 1)), _on(device, fixed)


def _on(device: torch.device, array: npt.NDArray[np.int32] | npt.NDArray[np.int64]) -> Tensor:
    import torch

    return torch.from_numpy(array).to(device)
