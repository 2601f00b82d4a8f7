"""The demo: a data set that the project draws itself, and detectors trained on it."""

from __future__ import annotations

from pathlib import Path

DEMO_WEIGHTS = Path(__file__).parent / "weights" / "co_dino_demo_fp16.safetensors"
# Image 3864 of data set 4, 480 x 720 (h x w) pixels: drawn like the training images, but not one of them.
SAMPLE_IMAGE = Path(__file__).parent / "sample.jpg"
