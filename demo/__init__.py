"""The demo: a data set that the project draws itself, and detectors trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

Family = Literal["co_dino", "rtdetrv2"]  # those with a demo

_FOLDER = Path(__file__).parent
# The weights that come along, of one detector a family.
WEIGHTS: dict[Family, Path] = {
    family: _FOLDER / "weights" / f"{family}_demo_fp16.safetensors" for family in get_args(Family)
}
DEMO_WEIGHTS = WEIGHTS["co_dino"]
# Image 3864 of data set 4, 480 x 720 (h x w) pixels: drawn like the training images, but not one of them.
SAMPLE_IMAGE = _FOLDER / "sample.jpg"
