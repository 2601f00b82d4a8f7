"""Pixels to the engine's input: resized by the engine's rule into the top left corner of a fixed canvas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from PIL import Image

from serving.decode import Image8, ImageLimits, decode_image
from serving.errors import CodetrError
from serving.parameters import UnknownParameters, check_way
from serving.rules import Pixels, Resize

DEFAULT_PIXELS = Pixels()
JpegDecoder = Literal["cpu", "gpu"]


class Preprocessed(NamedTuple):
    """One image as the engine takes it, and what is needed to find the way back."""

    images: Image8  # uint8 [H, W, 3] RGB
    image_size: tuple[int, int]  # valid (height, width) in pixels of `images`
    original_size: tuple[int, int]  # (height, width) of the upright original in pixels


@dataclass(frozen=True)
class PreprocessSettings(ImageLimits):
    """What is refused, and how the rest becomes the engine's input; the fields of both are parameters of one model."""

    resize: Resize = DEFAULT_PIXELS.resize
    antialias: bool = DEFAULT_PIXELS.antialias
    shortest_edge: int = DEFAULT_PIXELS.shortest_edge
    longest_edge: int = DEFAULT_PIXELS.longest_edge
    jpeg_decoder: JpegDecoder = "cpu"  # gpu: serving.gpu_decode
    unknown_parameters: UnknownParameters = "refuse"  # of a request
    # of a Python detector's queue, whose images are in memory as the engine takes them
    max_waiting_images: int = 128
    max_waiting_seconds: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.pixels  # checks it
        check_way(self.unknown_parameters)
        if self.jpeg_decoder not in get_args(JpegDecoder):
            raise CodetrError(f"jpeg_decoder: expected cpu or gpu, got {self.jpeg_decoder!r}")
        if self.max_waiting_images < 1:
            raise CodetrError(f"max_waiting_images: expected at least 1, got {self.max_waiting_images}")
        if not self.max_waiting_seconds > 0:
            raise CodetrError(f"max_waiting_seconds: expected seconds above 0, got {self.max_waiting_seconds:g}")

    @property
    def pixels(self) -> Pixels:
        """The rule that these settings follow."""
        return Pixels(self.resize, self.antialias, self.shortest_edge, self.longest_edge)


def pixel_parameters(rule: Pixels) -> dict[str, str]:
    """Return the parameters of `config.pbtxt` that stand for a rule."""
    return {key: str(value).lower() for key, value in asdict(rule).items()}


def untimed(stage: str, seconds: float) -> None:
    """Keep nothing of what a stage took."""


def preprocess(
    data: bytes,
    height: int,
    width: int,
    limits: ImageLimits | None = None,
    rule: Pixels = DEFAULT_PIXELS,
    took: Callable[[str, float], object] = untimed,
    canvas: Image8 | None = None,
) -> Preprocessed:
    """Decode one encoded image and fit it into an engine's `height` x `width` by its rule.

    `took` is called with the seconds of each of the stages `decode` and `resize` that was done. The result is written
    to `canvas`, uint8 `[height, width, 3]`, if there is one.

    Raises:
        InvalidImageError: as `decode_image`.
    """
    started = perf_counter()
    image = decode_image(data, limits)
    decoded = perf_counter()
    took("decode", decoded - started)
    images, image_size = resize_and_pad(image, height, width, rule, canvas)
    took("resize", perf_counter() - decoded)
    return Preprocessed(images, image_size, (image.shape[0], image.shape[1]))


def resize_and_pad(
    image: Image8, height: int, width: int, rule: Pixels = DEFAULT_PIXELS, canvas: Image8 | None = None
) -> tuple[Image8, tuple[int, int]]:
    """Resize an image by a rule, at most to `height` x `width`, and pad it with zeros below and at the right.

    The engine zeroes the padding again after normalisation, as mmdetection has it.

    Args:
        image: uint8 `[h, w, 3]`.
        height: the engine's height in pixels.
        width: the engine's width in pixels.
        rule: of the engine.
        canvas: uint8 `[height, width, 3]` to write to; None for a new one, or for the image itself if it fits as it is.

    Returns:
        The canvas with the image at the top left, and the (height, width) it fills, each at least 1.
    """
    valid_h, valid_w = valid_size(image.shape[0], image.shape[1], height, width, rule)
    if canvas is None and image.shape[:2] == (valid_h, valid_w) == (height, width):
        return image, (valid_h, valid_w)
    if canvas is None:
        canvas = np.empty((height, width, 3), np.uint8)
    _resize(image, canvas[:valid_h, :valid_w], rule.antialias)
    canvas[valid_h:] = 0
    canvas[:valid_h, valid_w:] = 0
    return canvas, (valid_h, valid_w)


def valid_size(h: int, w: int, height: int, width: int, rule: Pixels = DEFAULT_PIXELS) -> tuple[int, int]:
    """Return the (height, width) that an image of `h` x `w` pixels fills of an engine's `height` x `width`."""
    if rule.resize == "stretch":
        return height, width
    if rule.shortest_edge:
        return _edges(h, w, height, width, rule)
    # mmcv's `imrescale`, with the scale chosen for the engine's orientation.
    scale = min(width / w, height / h)
    return min(max(int(h * scale + 0.5), 1), height), min(max(int(w * scale + 0.5), 1), width)


def _edges(h: int, w: int, height: int, width: int, rule: Pixels) -> tuple[int, int]:
    """Return the size by the lengths of the edges, or the largest one of the same rule that the engine holds.

    Source: `datasets/transforms.py` of facebookresearch/detr: the longer side follows from the rounded shorter one and
    is cut, so it can be beyond `longest_edge` by a few pixels.
    """
    short, long = sorted((h, w))
    size = rule.shortest_edge
    if long * size > rule.longest_edge * short:
        size = round(rule.longest_edge * short / long)  # half to even, as the source
    room_short, room_long = (height, width) if h <= w else (width, height)
    # The largest `size` whose longer side, floor(size * long / short), has room.
    size = max(min(size, room_short, -(-(room_long + 1) * short // long) - 1), 1)
    sides = (size, min(max(size * long // short, 1), room_long))
    return sides if h <= w else (sides[1], sides[0])


def _resize(image: Image8, target: Image8, antialias: bool) -> None:
    """Fill the target, a part of a canvas, which OpenCV writes to where it is."""
    height, width, _ = target.shape
    if antialias:
        # Across, then down, as Pillow did by itself up to 12; 13 takes the order from the sizes, and rounds in between.
        rows = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.BILINEAR)
        target[...] = np.asarray(rows.resize((width, height), Image.Resampling.BILINEAR))
    else:
        cv2.resize(image, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
