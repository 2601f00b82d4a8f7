"""Shapes and clutter as masks, ready to be painted."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from demo.shapes import CLASS_NAMES

SUBPIXELS = 4  # masks are so many times finer than pixels, in each direction
CLUTTER = -1  # the label of what is no shape

_MIN_HOLLOW_SIZE = 26.0  # pixels; thinner outlines melt into the background


class Item(NamedTuple):
    """One thing to be painted: its mask at a pixel-aligned place, and how to colour it."""

    label: int
    x: int  # left and top of the mask in pixels; may be negative
    y: int
    mask: NDArray[np.uint8]  # [h * SUBPIXELS, w * SUBPIXELS], 0 or 255
    border: NDArray[np.uint8] | None  # the part of the mask painted in the border's colour
    outline: NDArray[np.float32]  # [K, 2] (x, y) pixels just outside the shape, where contrast is judged
    alpha: float


def draw_shape(rng: np.random.Generator, label: int, x: float, y: float, side: float) -> Item:
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
) -> Item:
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
    return Item(label, left, top, mask, line if style == "bordered" else None, samples.astype(np.float32), float(alpha))


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


def draw_clutter(rng: np.random.Generator, x: float, y: float, side: float) -> Item:
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
    return _item(CLUTTER, x, y, [contour], "filled", 0.0, rng.uniform(0.5, 1.0) if rng.random() < 0.5 else 1.0)
