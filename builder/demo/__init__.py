"""The demo: a data set the project draws itself and a small Co-DINO trained on it."""

from __future__ import annotations

from pathlib import Path

CLASS_NAMES = ("circle", "square", "triangle", "star", "ring", "cross", "pentagon", "heart")

DEMO_VARIANT = "co_dino_demo"
DEMO_WEIGHTS = Path(__file__).parent / "weights" / "co_dino_demo_fp16.safetensors"
# Image 263 of data set 4, 480 x 720 (h x w) pixels: drawn like the training images, but not one of them.
SAMPLE_IMAGE = Path(__file__).parent / "sample.jpg"
