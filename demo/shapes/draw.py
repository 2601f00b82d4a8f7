"""A seeded generator of detection data: eight classes of shapes on photo-like backgrounds, with exact boxes.

Every image is a function of (seed, index). Items are painted back to front; a second, four times finer canvas
remembers which item owns each sub-pixel, and boxes are the extents of what an item still owns at the end: the
visible part, to a quarter of a pixel. What a person could not name is never annotated and never left in the image
either: an item that would have too little contrast, or hide too much of another, is not painted at all.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from demo.shapes.outlines import CLUTTER, SUBPIXELS, Item, draw_clutter, draw_shape
from demo.shapes.scenery import background, camera

# Smallest longer side in pixels at which a class can be told from the others: a pentagon of 8 pixels is a disc.
MIN_SIZES = (8, 8, 8, 12, 10, 10, 14, 12)
MAX_SIZE = 0.6  # of the image's shorter side
ASPECTS = (16 / 9, 3 / 2, 4 / 3, 1.0, 3 / 4, 2 / 3, 9 / 16)  # width / height
IMAGE_SCALES = (0.85, 1.3)  # of the largest image of an aspect that fits 320 x 480 (h x w) pixels

_EMPTY_SHARE = 0.05  # of the images have no shape at all
_MIN_CONTRAST = 50.0  # RGB distance (0..441) to what surrounds 9 in 10 points of an outline


class Sample(NamedTuple):
    """One image and its annotations."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    boxes: NDArray[np.float32]  # [N, 4] x1 y1 x2 y2 of the visible parts, pixels
    labels: NDArray[np.int64]  # [N] index into CLASS_NAMES
    areas: NDArray[np.float32]  # [N] visible area, pixels²


def generate(seed: int, index: int, size: tuple[int, int] | None = None) -> Sample:
    """Draw image `index` of the data set `seed`.

    Args:
        seed: names the data set; training and evaluation use different ones.
        index: the image's number within the data set.
        size: (height, width) in pixels; by default drawn from `ASPECTS` and `IMAGE_SCALES`.

    Returns:
        The image and the boxes, labels and areas of the visible parts of its shapes.
    """
    rng = np.random.default_rng((seed, index))
    height, width = size or _image_size(rng)
    canvas = _Canvas(background(rng, height, width))
    for label, side in _plan(rng, height, width):
        canvas.try_to_paint(rng, label, side)
    boxes, labels, areas = canvas.annotations()
    return Sample(camera(rng, canvas.image), boxes, labels, areas)


def _image_size(rng: np.random.Generator) -> tuple[int, int]:
    aspect = rng.choice(ASPECTS)
    height = min(320.0, 480.0 / aspect) * rng.uniform(*IMAGE_SCALES)
    return round(height), round(height * aspect)


def _plan(rng: np.random.Generator, height: int, width: int) -> list[tuple[int, float]]:
    """Return labels and sizes of the items, roughly from large to small, so that small ones lie on top."""
    limit = MAX_SIZE * min(height, width)
    busy = height * width / (320 * 480)
    shapes = 0 if rng.random() < _EMPTY_SHARE else rng.integers(1, 3 + round(11 * min(busy, 1.2)))
    plan = [(int(label), _size(rng, MIN_SIZES[label], limit)) for label in rng.integers(0, 8, shapes)]
    plan += [(CLUTTER, _size(rng, 12, 1.5 * limit)) for _ in range(rng.integers(0, 7))]
    return sorted(plan, key=lambda item: -item[1] * rng.uniform(0.4, 1.6))


def _size(rng: np.random.Generator, smallest: float, largest: float) -> float:
    """Draw log-uniformly, bent a little away from the smallest sizes."""
    return float(smallest * (largest / smallest) ** rng.beta(1.5, 1.3))


class _Canvas:
    """The image being painted and, `SUBPIXELS` times finer, which item owns each of its points."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.image = image
        self.height, self.width = image.shape[:2]
        self.owners = np.zeros((self.height * SUBPIXELS, self.width * SUBPIXELS), np.uint8)  # 0 is the background
        self.items: list[Item] = []  # item i has owner number i + 1
        self.sizes = [0]  # sub-pixels of each item's mask, visible or not; the first is the background's
        self.visible = np.zeros(256, np.int64)

    def try_to_paint(self, rng: np.random.Generator, label: int, side: float) -> None:
        """Paint one item at the first of a few random places where everything stays recognisable."""
        for _ in range(6):
            x, y = self._place(rng, side)
            item = draw_clutter(rng, x, y, side) if label == CLUTTER else draw_shape(rng, label, x, y, side)
            if self._fits(item):
                colors = self._colors(rng, item)
                if colors is not None:
                    self._paint(item, colors)
                return

    def annotations(self) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """Return boxes [N, 4], labels [N] and areas [N] of what is visible of each shape."""
        rows = [self._annotation(number) for number, item in enumerate(self.items, 1) if item.label != CLUTTER]
        table = np.array(rows, np.float32).reshape(-1, 6)
        return table[:, :4], table[:, 4].astype(np.int64), table[:, 5]

    def _place(self, rng: np.random.Generator, side: float) -> tuple[float, float]:
        """Return a centre (x, y): anywhere, or near an earlier item so that shapes overlap."""
        if self.items and rng.random() < 0.25:
            item = self.items[rng.integers(len(self.items))]
            h, w = (n / SUBPIXELS for n in item.mask.shape)
            angle, distance = rng.uniform(0, 2 * np.pi), 0.5 * (side + min(h, w)) * rng.uniform(0.6, 1.1)
            return item.x + w / 2 + distance * np.cos(angle), item.y + h / 2 + distance * np.sin(angle)
        margin = 0.3 * side  # a part of the shape may lie outside
        x, y = rng.uniform(margin, self.width - margin), rng.uniform(margin, self.height - margin)
        return float(x), float(y)

    def _window(self, item: Item) -> tuple[NDArray[np.uint8], tuple[slice, slice], tuple[slice, slice]]:
        """Return the mask's part inside the image, its place in the image and its place in `owners`."""
        h, w = (n // SUBPIXELS for n in item.mask.shape)
        x0, y0, x1, y1 = max(item.x, 0), max(item.y, 0), min(item.x + w, self.width), min(item.y + h, self.height)
        x1, y1 = max(x1, x0), max(y1, y0)
        inside = _fine(slice(y0 - item.y, y1 - item.y)), _fine(slice(x0 - item.x, x1 - item.x))
        pixels = slice(y0, y1), slice(x0, x1)
        return item.mask[inside], pixels, (_fine(pixels[0]), _fine(pixels[1]))

    def _fits(self, item: Item) -> bool:
        """Tell whether the item and all it covers stay recognisable."""
        mask, _, place = self._window(item)
        inside, total = cv2.countNonZero(mask) if mask.size else 0, cv2.countNonZero(item.mask)
        if not inside or inside < _needed(item) * total or len(self.items) >= 255:
            return False
        under = self.owners[place]
        if not under.any():
            return True
        covered = np.bincount(under[mask > 0], minlength=256)
        numbers = np.flatnonzero(covered[1:]) + 1
        if len(numbers) and item.alpha < 1:
            return False  # what is seen through another shape has no clear box
        if item.label == CLUTTER and any(self.items[number - 1].label == CLUTTER for number in numbers):
            return False  # two bars may make a cross
        left = self.visible[numbers] - covered[numbers]
        return all(
            n >= _needed(self.items[number - 1]) * self.sizes[number]
            for n, number in zip(left.tolist(), numbers.tolist(), strict=True)
        )

    def _colors(self, rng: np.random.Generator, item: Item) -> NDArray[np.float32] | None:
        """Return fill and border colours [2, 3] that stand out from the surroundings, or None."""
        x, y = np.round(item.outline).astype(int).T
        near = (x >= 0) & (y >= 0) & (x < self.width) & (y < self.height)
        around = self.image[y[near], x[near]].astype(np.float32)
        palette = rng.uniform(0, 255, (24, 3)).astype(np.float32)
        if not len(around):
            return None
        distances = np.linalg.norm(palette[:, None] - around[None], axis=-1) * item.alpha
        contrast = np.quantile(distances, 0.1, axis=1)
        if item.label == CLUTTER:
            return palette[:2]
        good = np.flatnonzero(contrast >= _MIN_CONTRAST)
        if not len(good):
            return None
        border = palette[good[0]]
        others = np.linalg.norm(palette - border, axis=1)
        fill = palette[good[np.argmax(others[good] >= 120)]] if item.border is not None else border
        colors: NDArray[np.float32] = np.stack([fill, border])
        return colors

    def _paint(self, item: Item, colors: NDArray[np.float32]) -> None:
        mask, pixels, place = self._window(item)
        self.items.append(item)
        self.sizes.append(cv2.countNonZero(item.mask))
        number = len(self.items)
        under, inside = self.owners[place], mask > 0
        self.visible -= np.bincount(under[inside], minlength=256) if under.any() else 0
        self.visible[number] = cv2.countNonZero(mask)
        under[inside] = number
        self._blend(pixels, mask, colors[0], item.alpha)
        if item.border is not None:
            self._blend(pixels, self._window(item._replace(mask=item.border))[0], colors[1], item.alpha)

    def _blend(
        self, pixels: tuple[slice, slice], mask: NDArray[np.uint8], color: NDArray[np.float32], alpha: float
    ) -> None:
        patch = self.image[pixels]
        h, w = patch.shape[:2]
        cover = cv2.resize(mask, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] * (alpha / 255)
        patch[:] = np.rint(patch + cover * (color - patch))

    def _annotation(self, number: int) -> tuple[float, ...]:
        item = self.items[number - 1]
        _, (rows, columns), place = self._window(item)
        seen = self.owners[place] == number
        y, x = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        box = (x[0] / SUBPIXELS, y[0] / SUBPIXELS, (x[-1] + 1) / SUBPIXELS, (y[-1] + 1) / SUBPIXELS)
        area = np.count_nonzero(seen) / SUBPIXELS**2
        left, top = columns.start, rows.start
        return box[0] + left, box[1] + top, box[2] + left, box[3] + top, item.label, area


def _fine(pixels: slice) -> slice:
    return slice(pixels.start * SUBPIXELS, pixels.stop * SUBPIXELS)


def _needed(item: Item) -> float:
    """Return the share of an item that must be visible: small shapes need nearly all of theirs."""
    if item.label == CLUTTER:
        return 0.0
    side = max(item.mask.shape) / SUBPIXELS
    return 0.95 if side < 24 else 0.75 if side < 48 else 0.55
