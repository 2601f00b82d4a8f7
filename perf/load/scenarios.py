"""What users send, apart from how it is timed: a weighted mix of pictures, with a share of bad ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from perf.pictures import Format, encoded_picture


@dataclass(frozen=True)
class Shot:
    """One request: its name in the statistics, the encoded image, and whether the server has to refuse it."""

    name: str
    image: bytes
    is_bad: bool


@dataclass(frozen=True)
class PictureKind:
    """One kind of picture in the mix, and how often it is sent relative to the others."""

    image_format: Format
    width: int
    height: int
    weight: float

    @property
    def name(self) -> str:
        """What the statistics call it."""
        return f"{self.image_format} {self.width}x{self.height}"


# What arrives at such services, by experience rather than by a survey: mostly camera JPEGs, some pictures from the
# web, few large photographs. Name another mix by its own list.
MIX: tuple[PictureKind, ...] = (
    PictureKind("jpeg", 1280, 720, 30),
    PictureKind("jpeg", 1920, 1080, 30),
    PictureKind("jpeg", 640, 480, 20),
    PictureKind("jpeg", 1080, 1920, 8),
    PictureKind("png", 800, 600, 5),
    PictureKind("webp", 1024, 768, 5),
    PictureKind("jpeg", 4000, 3000, 2),
)
BAD_IMAGES: tuple[tuple[str, bytes], ...] = (
    ("bad: empty", b""),
    ("bad: text", b"this is not an image"),
    ("bad: cut JPEG", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01"),
)


class Scenario:
    """An endless, seeded sequence of requests: pictures of `mix` by weight, and `bad_share` (0..1) of bad ones."""

    def __init__(self, mix: Sequence[PictureKind] = MIX, bad_share: float = 0.01, seed: int = 0) -> None:
        self._mix = list(mix)
        self._weights = [kind.weight for kind in mix]
        self._bad_share = bad_share
        self._random = random.Random(seed)

    def next_shot(self) -> Shot:
        """Return the next request."""
        if self._random.random() < self._bad_share:
            name, image = self._random.choice(BAD_IMAGES)
            return Shot(name, image, is_bad=True)
        (kind,) = self._random.choices(self._mix, self._weights)
        return Shot(kind.name, _encoded(kind), is_bad=False)


@cache  # users share the pictures: encoding one costs more than a request
def _encoded(kind: PictureKind) -> bytes:
    return encoded_picture(kind.width, kind.height, kind.image_format)


def prepare(mix: Sequence[PictureKind] = MIX) -> None:
    """Make all pictures of a mix, so that no request waits for one."""
    for kind in mix:
        _encoded(kind)
