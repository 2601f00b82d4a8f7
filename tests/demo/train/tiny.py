"""The smallest networks of both families that can learn something."""

from __future__ import annotations

from builder.co_dino.config import SwinConfig, Variant
from builder.rtdetrv2.config import HybridEncoderConfig, PResNetConfig, RTDETRv2Config
from demo.shapes import CLASS_NAMES

CO_DINO = Variant(
    "tiny",
    SwinConfig(32, (1, 1, 1, 1), (1, 2, 4, 8), window_size=7),
    num_classes=8,
    num_queries=40,
    embed_dim=64,
    num_heads=2,
    num_self_heads=2,
    feedforward_dim=128,
    encoder_layers=1,
    decoder_layers=2,
    input_size=(96, 144),
    class_names=CLASS_NAMES,
)
RTDETRV2 = RTDETRv2Config(
    "tiny",
    PResNetConfig(18, (1, 1, 1, 1), stem_channels=16, widths=(16, 32, 48, 64), frozen_norm=False),
    HybridEncoderConfig(embed_dim=64, num_heads=2, feedforward_dim=128, expansion=0.5, num_rep_blocks=1),
    num_classes=8,
    num_queries=40,
    embed_dim=64,
    num_heads=2,
    feedforward_dim=128,
    decoder_layers=2,
    input_size=(96, 160),
    class_names=CLASS_NAMES,
)
