"""Detections drawn on their picture."""

from __future__ import annotations

import colorsys
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from codetr_client.detections import Detections
from codetr_client.images import ImageInput, open_upright
from codetr_client.text import printable

Colour: TypeAlias = tuple[int, int, int]

# Successive labels step around the colour circle by the golden ratio, so that neighbours never look alike.
HUE_STEP = 0.618034
# Pictures smaller than this (pixels) have no room for text.
MIN_SIDE_FOR_TEXT = 64
GAP = 4  # pixels between two pictures


def colour(label: int) -> Colour:
    """Return the RGB colour of a class: always the same, and distinct from the next labels' colours."""
    brightness = (0.95, 0.75)[label % 2]
    red, green, blue = colorsys.hsv_to_rgb(label * HUE_STEP % 1.0, 0.8, brightness)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(image: ImageInput, detections: Detections) -> Image.Image:
    """Return a copy of the picture, upright and RGB, with boxes, class names and scores in per cent.

    Lines and text grow with the picture. The best detections are drawn last, so nothing hides their labels.
    Raises InvalidImageError for a picture that cannot be read.
    """
    picture = open_upright(image)
    canvas = ImageDraw.Draw(picture)
    line = max(1, round(max(picture.size) / 400))
    font = ImageFont.load_default(size=max(10, max(picture.size) / 60))
    by_score = np.argsort(detections.scores, kind="stable")
    for index in by_score:
        canvas.rectangle(_box(detections, index), outline=colour(int(detections.labels[index])), width=line)
    if min(picture.size) >= MIN_SIDE_FOR_TEXT:
        for index in by_score:
            _draw_label(canvas, picture.size, detections, int(index), font)
    return picture


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return two pictures as one, `GAP` white pixels between them."""
    pair = Image.new("RGB", (left.width + GAP + right.width, max(left.height, right.height)), "white")
    pair.paste(left, (0, 0))
    pair.paste(right, (left.width + GAP, 0))
    return pair


def _box(detections: Detections, index: int) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = detections.boxes[index].tolist()
    return x1, y1, max(x1, x2), max(y1, y2)


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    detections: Detections,
    index: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    text = f"{printable(detections.names[index])} {detections.scores[index]:.0%}"
    x1, y1, _, _ = _box(detections, index)
    _, _, width, height = canvas.textbbox((0, 0), text, font=font)
    pad = max(1, round(height / 6))
    # Above the box if there is room, else inside it; never outside the picture.
    left = max(0.0, min(x1, size[0] - width - 2 * pad))
    top = y1 - height - 2 * pad
    top = top if top >= 0 else min(y1, size[1] - height - 2 * pad)
    background = colour(int(detections.labels[index]))
    canvas.rectangle((left, top, left + width + 2 * pad, top + height + 2 * pad), fill=background)
    canvas.text((left + pad, top + pad), text, fill=readable_on(background), font=font)


def readable_on(background: Colour) -> Colour:
    """Return black or white, whichever can be read on a colour."""
    red, green, blue = background
    # Rec. 601 luma, the brightness that the eye sees.
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else (255, 255, 255)
