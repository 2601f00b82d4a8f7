"""A Co-DINO of as few kernels and weights as it can have."""

from pathlib import Path

from builder.engines.kinds import KINDS, BuiltEngine
from builder.pipeline.export import INPUT_NAMES, OUTPUT_NAMES
from builder.variants import SwinConfig, Variant

SMALLEST = Variant(
    "smallest",
    SwinConfig(16, (1,), (1,), window_size=4, mlp_ratio=1, out_indices=(0,)),
    num_classes=4,
    num_queries=20,
    max_detections=40,
    embed_dim=32,
    num_heads=2,
    num_self_heads=2,
    num_levels=2,
    num_points=2,
    feedforward_dim=32,
    encoder_layers=1,
    decoder_layers=1,
)


def built(kind="onnx", device="cpu", file=Path("engine"), outputs=OUTPUT_NAMES, inputs=INPUT_NAMES):
    """Return what a build of a kind of engine returns."""
    return BuiltEngine(file, KINDS[kind], device, inputs, outputs)
