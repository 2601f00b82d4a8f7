"""The demo: a data set the project draws itself and a small Co-DINO trained on it."""

from __future__ import annotations

from pathlib import Path

from builder.co_dino.config import SwinConfig, Variant

CLASS_NAMES = ("circle", "square", "triangle", "star", "ring", "cross", "pentagon", "heart")

DEMO_VARIANT = "co_dino_demo"
# Trained by `codetr train-demo` on generated shapes.
DEMO_NETWORK = Variant(
    DEMO_VARIANT,
    SwinConfig(32, (2, 2, 6, 2), (1, 2, 4, 8), window_size=7),
    num_classes=len(CLASS_NAMES),
    num_queries=150,
    embed_dim=128,
    num_heads=4,
    num_self_heads=4,
    feedforward_dim=512,
    encoder_layers=3,
    decoder_layers=3,
    input_size=(320, 480),
    class_names=CLASS_NAMES,
)
DEMO_WEIGHTS = Path(__file__).parent / "weights" / "co_dino_demo_fp16.safetensors"
# Image 3864 of data set 4, 480 x 720 (h x w) pixels: drawn like the training images, but not one of them.
SAMPLE_IMAGE = Path(__file__).parent / "sample.jpg"
