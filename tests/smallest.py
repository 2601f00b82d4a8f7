"""A Co-DINO of as few kernels and weights as it can have, and an engine that nothing is compiled for."""

from types import SimpleNamespace

from builder.variants import SwinConfig, Variant

SMALLEST = Variant(
    "smallest",
    SwinConfig(16, (1, 1, 1, 1), (1, 1, 2, 2), window_size=4, mlp_ratio=1),
    num_classes=4,
    num_queries=20,
    max_detections=40,
    embed_dim=32,
    num_heads=2,
    num_self_heads=2,
    num_levels=4,
    num_points=2,
    feedforward_dim=32,
    encoder_layers=1,
    decoder_layers=1,
)


def stand_in_engine(**names):
    """Return what a module of `builder.engines` has, with `names` added to it or in place of its own."""
    own = {"PRECISIONS": ("float32",), "device": lambda: "cpu", "check": lambda: None, "extra_files": list}
    return SimpleNamespace(**(own | names))
