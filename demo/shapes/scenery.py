"""Photo-like backgrounds, and what a camera does to a picture."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray


def background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Return a gradient under clouds of several sizes, sometimes with stripes: smooth like a blurred photograph."""
    base = rng.uniform(30, 225) + rng.normal(0, 28, 3)
    corners = base + rng.normal(0, rng.uniform(5, 40), (4, 1)) + rng.normal(0, 12, (4, 3))
    image = cv2.resize(corners.reshape(2, 2, 3).astype(np.float32), (width, height))
    for cells in rng.integers(2, 24, rng.integers(1, 4)):  # along the shorter side
        rows, columns = (max(2, round(cells * side / min(height, width))) for side in (height, width))
        grid = rng.normal(0, 1, (rows, columns, 1)) + rng.normal(0, 0.3, (rows, columns, 3))
        grid *= rng.uniform(3, 60) / np.sqrt(cells)
        image += cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.25:
        y, x = np.ogrid[:height, :width]
        ky, kx = rng.normal(0, 0.12, 2)
        image += (np.sin((x * kx + y * ky).astype(np.float32)) * rng.uniform(3, 14))[..., None]
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def camera(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image slightly out of focus and with sensor noise, sometimes."""
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (5, 5), rng.uniform(0.3, 0.8)).astype(np.uint8)
    if rng.random() < 0.7:
        image = _with_noise(rng, image, rng.uniform(1, 9))
    return image


def _with_noise(rng: np.random.Generator, image: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    tile = _noise_tile()
    y, x = rng.integers(0, len(tile) - height + 1), rng.integers(0, len(tile) - width + 1)
    noise = tile[y : y + height, x : x + width]
    noisy: NDArray[np.uint8] = np.clip(np.rint(image + noise * np.float32(sigma)), 0, 255).astype(np.uint8)
    return noisy


@lru_cache(maxsize=1)
def _noise_tile() -> NDArray[np.float32]:
    """Return unit normal noise [1280, 1280, 3], cut from at random places: drawing it anew costs most of an image."""
    return np.random.default_rng(0).standard_normal((1280, 1280, 3), np.float32)
