"""A seeded generator of detection data: eight classes of shapes on photo-like backgrounds, with exact boxes.

Every image is a function of (seed, index). Items are painted back to front; a second, four times finer canvas
remembers which item owns each sub-pixel, and boxes are the extents of what an item still owns at the end: the
visible part, to a quarter of a pixel. What a person could not name is never annotated and never left in the image
either: an item that would have too little contrast, or hide too much of another, is not painted at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from builder.demo import CLASS_NAMES

# Smallest longer side in pixels at which a class can be told from the others: a pentagon of 8 pixels is a disc.
MIN_SIZES = (8, 8, 8, 12, 10, 10, 14, 12)
MAX_SIZE = 0.6  # of the image's shorter side
ASPECTS = (16 / 9, 3 / 2, 4 / 3, 1.0, 3 / 4, 2 / 3, 9 / 16)  # width / height
IMAGE_SCALES = (0.85, 1.3)  # of the largest image of an aspect that fits 320 x 480 (h x w) pixels

SUBPIXELS = 4  # the finer canvas has SUBPIXELS² owners a pixel
JPEG_QUALITY = 95

_CLUTTER = -1
_EMPTY_SHARE = 0.05  # of the images have no shape at all
_MIN_CONTRAST = 50.0  # RGB distance (0..441) to what surrounds 9 in 10 points of an outline
_MIN_HOLLOW_SIZE = 26.0  # pixels; thinner outlines melt into the background


class Sample(NamedTuple):
    """One image and its annotations."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB
    boxes: NDArray[np.float32]  # [N, 4] x1 y1 x2 y2 of the visible parts, pixels
    labels: NDArray[np.int64]  # [N] index into CLASS_NAMES
    areas: NDArray[np.float32]  # [N] visible area, pixels²


class _Item(NamedTuple):
    """What `_Canvas.paint` needs: a mask on the finer canvas at a pixel-aligned place, and how to colour it."""

    label: int
    x: int  # left and top of the mask in pixels; may be negative
    y: int
    mask: NDArray[np.uint8]  # [h * SUBPIXELS, w * SUBPIXELS], 0 or 255
    border: NDArray[np.uint8] | None  # the part of the mask painted in the border's colour
    outline: NDArray[np.float32]  # [K, 2] (x, y) pixels just outside the shape, where contrast is judged
    alpha: float


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
    canvas = _Canvas(_background(rng, height, width))
    for label, side in _plan(rng, height, width):
        canvas.try_to_paint(rng, label, side)
    boxes, labels, areas = canvas.annotations()
    return Sample(_camera(rng, canvas.image), boxes, labels, areas)


def write_dataset(
    output: Path, images: int, seed: int, first: int = 0, progress: Callable[[Iterable[int]], Iterable[int]] = iter
) -> Path:
    """Write images `first` .. `first + images - 1` of data set `seed` as JPEG files with COCO annotations.

    Args:
        output: folder that receives `images/` and `annotations.json`.
        images: number of images.
        seed: as in `generate`.
        first: index of the first image.
        progress: wraps the iteration over indices, to show it.

    Returns:
        The path of the annotation file.
    """
    (output / "images").mkdir(parents=True, exist_ok=True)
    coco = {"info": {"description": "generated shapes", "seed": seed, "first": first}, **coco_annotations([])}
    for index in progress(range(first, first + images)):
        sample = generate(seed, index)
        _append_to_coco(coco, sample, index)
        (output / "images" / coco["images"][-1]["file_name"]).write_bytes(encode_jpeg(sample.image))
    path = output / "annotations.json"
    path.write_text(json.dumps(coco), encoding="utf-8")
    return path


def coco_annotations(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the COCO annotations of the first images of a data set, as `write_dataset` numbers them."""
    coco: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASS_NAMES)],
    }
    for index, sample in enumerate(samples):
        _append_to_coco(coco, sample, index)
    return coco


def encode_jpeg(image: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> bytes:
    """Encode an RGB image [H, W, 3] as JPEG."""
    encoded: NDArray[np.uint8] = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )[1]
    return encoded.tobytes()


def _append_to_coco(coco: dict[str, Any], sample: Sample, index: int) -> None:
    height, width = sample.image.shape[:2]
    image_id = index + 1
    coco["images"].append({"id": image_id, "file_name": f"{index:06d}.jpg", "height": height, "width": width})
    for (x1, y1, x2, y2), label, area in zip(
        sample.boxes.tolist(), sample.labels.tolist(), sample.areas.tolist(), strict=True
    ):
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": area,
                "iscrowd": 0,
            }
        )


# ---------------------------------------------------------------------------------------------- what to paint


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
    plan += [(_CLUTTER, _size(rng, 12, 1.5 * limit)) for _ in range(rng.integers(0, 7))]
    return sorted(plan, key=lambda item: -item[1] * rng.uniform(0.4, 1.6))


def _size(rng: np.random.Generator, smallest: float, largest: float) -> float:
    """Draw log-uniformly, bent a little away from the smallest sizes."""
    return float(smallest * (largest / smallest) ** rng.beta(1.5, 1.3))


# -------------------------------------------------------------------------------------------------- painting


class _Canvas:
    """The image being painted and, `SUBPIXELS` times finer, which item owns each of its points."""

    def __init__(self, image: NDArray[np.uint8]) -> None:
        self.image = image
        self.height, self.width = image.shape[:2]
        self.owners = np.zeros((self.height * SUBPIXELS, self.width * SUBPIXELS), np.uint8)  # 0 is the background
        self.items: list[_Item] = []  # item i has owner number i + 1
        self.sizes = [0]  # sub-pixels of each item's mask, visible or not; the first is the background's
        self.visible = np.zeros(256, np.int64)

    def try_to_paint(self, rng: np.random.Generator, label: int, side: float) -> None:
        """Paint one item at the first of a few random places where everything stays recognisable."""
        for _ in range(6):
            x, y = self._place(rng, side)
            item = _clutter(rng, x, y, side) if label == _CLUTTER else _shape(rng, label, x, y, side)
            if self._fits(item):
                colors = self._colors(rng, item)
                if colors is not None:
                    self._paint(item, colors)
                return

    def annotations(self) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """Return boxes [N, 4], labels [N] and areas [N] of what is visible of each shape."""
        rows = [self._annotation(number) for number, item in enumerate(self.items, 1) if item.label != _CLUTTER]
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

    def _window(self, item: _Item) -> tuple[NDArray[np.uint8], tuple[slice, slice], tuple[slice, slice]]:
        """Return the mask's part inside the image, its place in the image and its place in `owners`."""
        h, w = (n // SUBPIXELS for n in item.mask.shape)
        x0, y0, x1, y1 = max(item.x, 0), max(item.y, 0), min(item.x + w, self.width), min(item.y + h, self.height)
        x1, y1 = max(x1, x0), max(y1, y0)
        inside = _fine(slice(y0 - item.y, y1 - item.y)), _fine(slice(x0 - item.x, x1 - item.x))
        pixels = slice(y0, y1), slice(x0, x1)
        return item.mask[inside], pixels, (_fine(pixels[0]), _fine(pixels[1]))

    def _fits(self, item: _Item) -> bool:
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
        if item.label == _CLUTTER and any(self.items[number - 1].label == _CLUTTER for number in numbers):
            return False  # two bars may make a cross
        left = self.visible[numbers] - covered[numbers]
        return all(
            n >= _needed(self.items[number - 1]) * self.sizes[number]
            for n, number in zip(left.tolist(), numbers.tolist(), strict=True)
        )

    def _colors(self, rng: np.random.Generator, item: _Item) -> NDArray[np.float32] | None:
        """Return fill and border colours [2, 3] that stand out from the surroundings, or None."""
        x, y = np.round(item.outline).astype(int).T
        near = (x >= 0) & (y >= 0) & (x < self.width) & (y < self.height)
        around = self.image[y[near], x[near]].astype(np.float32)
        palette = rng.uniform(0, 255, (24, 3)).astype(np.float32)
        if not len(around):
            return None
        distances = np.linalg.norm(palette[:, None] - around[None], axis=-1) * item.alpha
        contrast = np.quantile(distances, 0.1, axis=1)
        if item.label == _CLUTTER:
            return palette[:2]
        good = np.flatnonzero(contrast >= _MIN_CONTRAST)
        if not len(good):
            return None
        border = palette[good[0]]
        others = np.linalg.norm(palette - border, axis=1)
        fill = palette[good[np.argmax(others[good] >= 120)]] if item.border is not None else border
        colors: NDArray[np.float32] = np.stack([fill, border])
        return colors

    def _paint(self, item: _Item, colors: NDArray[np.float32]) -> None:
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


def _needed(item: _Item) -> float:
    """Return the share of an item that must be visible: small shapes need nearly all of theirs."""
    if item.label == _CLUTTER:
        return 0.0
    side = max(item.mask.shape) / SUBPIXELS
    return 0.95 if side < 24 else 0.75 if side < 48 else 0.55


# ---------------------------------------------------------------------------------------------------- shapes


def _shape(rng: np.random.Generator, label: int, x: float, y: float, side: float) -> _Item:
    """Return a shape of class `label` whose longer side is about `side` pixels, centred at (x, y)."""
    contours = _turned(rng, _contours(rng, label))
    outer = contours[0]
    extent = float((outer.max(0) - outer.min(0)).max())
    contours = [(c - (outer.max(0) + outer.min(0)) / 2) * (side / extent) for c in contours]
    style = _style(rng, label, side)
    stroke = max(2.2, side * rng.uniform(0.07, 0.13)) if style != "filled" else 0.0
    contours = [c * (1 - stroke / side) for c in contours]  # half of the stroke lies outside its line
    alpha = rng.uniform(0.6, 0.9) if rng.random() < 0.2 and style == "filled" else 1.0
    return _item(label, x, y, contours, style, stroke, alpha)


def _style(rng: np.random.Generator, label: int, side: float) -> str:
    """Return filled, bordered or hollow; a hollow circle would be a ring, and a ring has no inside."""
    name = CLASS_NAMES[label]
    if side < _MIN_HOLLOW_SIZE or name == "ring":
        return "filled"
    styles = ("filled", "bordered") if name == "circle" else ("filled", "bordered", "hollow")
    return str(rng.choice(styles, p=(0.7, 0.3) if name == "circle" else (0.55, 0.25, 0.2)))


def _item(
    label: int, x: float, y: float, contours: list[NDArray[np.float64]], style: str, stroke: float, alpha: float
) -> _Item:
    """Rasterise contours (pixels, around their centre) at (x, y) on the finer grid."""
    half = int(np.ceil(max(float(np.abs(c).max()) for c in contours) + stroke / 2)) + 1
    left, top = int(np.floor(x)) - half, int(np.floor(y)) - half
    points = [c + np.array([x - left, y - top]) for c in contours]
    shape = ((2 * half + 1) * SUBPIXELS,) * 2
    mask, line = np.zeros(shape, np.uint8), None
    fixed = [np.rint((p * SUBPIXELS - 0.5) * 16).astype(np.int32) for p in points]  # pixel centres, 4 fractional bits
    if style != "hollow":
        cv2.fillPoly(mask, fixed, (255,), shift=4)
    if style != "filled":
        line = np.zeros(shape, np.uint8)
        cv2.polylines(line, fixed, True, (255,), thickness=max(round(stroke * SUBPIXELS), 1), shift=4)
        mask |= line
    reach = 1 + (stroke / 2 + 1.5) / float(np.abs(contours[0]).max())
    samples = _along(contours[0], 48) * reach + (x, y)
    return _Item(
        label, left, top, mask, line if style == "bordered" else None, samples.astype(np.float32), float(alpha)
    )


def _along(outline: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return `count` points [count, 2] at equal steps along a closed outline."""
    closed = np.concatenate([outline, outline[:1]])
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    at = np.linspace(0, lengths[-1], count, endpoint=False)
    return np.stack([np.interp(at, lengths, closed[:, axis]) for axis in (0, 1)], axis=1)


def _turned(rng: np.random.Generator, contours: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    return [c @ np.array([[cos, sin], [-sin, cos]]) for c in contours]


def _contours(rng: np.random.Generator, label: int) -> list[NDArray[np.float64]]:
    """Return a shape's outline, and that of its hole if it has one, in any scale, around (0, 0)."""
    name = CLASS_NAMES[label]
    if name == "ring":
        return [_regular(96), _regular(96) * rng.uniform(0.45, 0.7)]
    if name == "star":
        star = _regular(10)
        star[1::2] *= rng.uniform(0.38, 0.48)
        return [star]
    if name == "cross":
        return [_cross(rng.uniform(0.26, 0.36))]
    if name == "heart":
        return [_heart()]
    return [_regular({"circle": 96, "square": 4, "triangle": 3, "pentagon": 5}[name])]


def _regular(corners: int) -> NDArray[np.float64]:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross(arm: float) -> NDArray[np.float64]:
    """Return a plus sign of half length 1 whose arms are `2 * arm` wide."""
    quarter = np.array([(arm, arm), (arm, 1.0), (-arm, 1.0)])
    turn = np.array([(0.0, 1.0), (-1.0, 0.0)])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, i) for i in range(4)])


def _heart() -> NDArray[np.float64]:
    t = np.arange(96) * (2 * np.pi / 96)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    points: NDArray[np.float64] = np.stack([x, -y], axis=1)
    return points


def _clutter(rng: np.random.Generator, x: float, y: float, side: float) -> _Item:
    """Return something that is no shape: a long bar, a flat ellipse, an open arc, a wave or a zigzag."""
    kind = rng.choice(("bar", "ellipse", "arc", "wave", "zigzag"))
    t = np.linspace(-1, 1, 24)
    if kind == "bar":
        contour = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]) * (1.0, rng.uniform(0.04, 0.16))
    elif kind == "ellipse":
        contour = _regular(64) * (1.0, rng.uniform(0.15, 0.3))
    else:
        bend, half = rng.uniform(0.15, 0.5), rng.uniform(0.015, 0.05)
        curve = {"arc": t**2, "wave": np.sin(4 * t), "zigzag": np.abs((2 * t) % 2 - 1)}[str(kind)] * bend
        contour = np.concatenate([np.stack([t, curve - half], 1), np.stack([t, curve + half], 1)[::-1]])
    contour = _turned(rng, [contour])[0] * (side / 2)
    return _item(_CLUTTER, x, y, [contour], "filled", 0.0, rng.uniform(0.5, 1.0) if rng.random() < 0.5 else 1.0)


# ----------------------------------------------------------------------------------------- background, camera


def _background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
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


def _camera(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
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
