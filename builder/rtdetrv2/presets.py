"""The published RT-DETRv2 models, and the demo's."""

from __future__ import annotations

from dataclasses import replace

from builder.rtdetrv2.config import BLOCKS, HybridEncoderConfig, PResNetConfig, RTDETRv2Config
from demo.shapes import CLASS_NAMES

_NARROW = HybridEncoderConfig(expansion=0.5)
_R18 = RTDETRv2Config("rtdetrv2_r18vd", PResNetConfig(18, BLOCKS[18], frozen_norm=False), _NARROW, decoder_layers=3)
_R34 = RTDETRv2Config("rtdetrv2_r34vd", PResNetConfig(34, BLOCKS[34], frozen_norm=False), _NARROW, decoder_layers=4)
# Trained with six decoder layers, of which the third is evaluated (`eval_idx: 2`).
_R50_M = RTDETRv2Config("rtdetrv2_r50vd_m", PResNetConfig(), _NARROW, decoder_layers=3, trained_layers=6)
_R50 = RTDETRv2Config("rtdetrv2_r50vd")
_R101 = RTDETRv2Config(
    "rtdetrv2_r101vd", PResNetConfig(101, BLOCKS[101]), HybridEncoderConfig(embed_dim=384, feedforward_dim=2048)
)


def _discrete(variant: RTDETRv2Config) -> RTDETRv2Config:
    return replace(variant, name=f"{variant.name}_dsp", sampling="discrete")


def _points(count: int) -> RTDETRv2Config:
    return replace(_R18, name=f"{_R18.name}_sp{count}", num_points=(count,) * 3)


# Source: the model tables of lyuwenyu/RT-DETR `rtdetrv2_pytorch/README.md`.
_PUBLISHED: tuple[tuple[RTDETRv2Config, float, str], ...] = (
    (_R18, 48.1, "rtdetrv2_r18vd_120e_coco_rerun_48.1.pth"),
    (_R34, 49.9, "rtdetrv2_r34vd_120e_coco_ema.pth"),
    (_R50_M, 51.9, "rtdetrv2_r50vd_m_7x_coco_ema.pth"),
    (_R50, 53.4, "rtdetrv2_r50vd_6x_coco_ema.pth"),
    (_R101, 54.3, "rtdetrv2_r101vd_6x_coco_from_paddle.pth"),
    (_discrete(_R18), 47.4, "rtdetrv2_r18vd_dsp_3x_coco.pth"),
    (_discrete(_R34), 49.2, "rrtdetrv2_r34vd_dsp_1x_coco.pth"),  # sic
    (_discrete(_R50_M), 51.4, "rtdetrv2_r50vd_m_dsp_3x_coco.pth"),
    (_discrete(_R50), 52.9, "rtdetrv2_r50vd_dsp_1x_coco.pth"),
    (_points(1), 47.3, "rtdetrv2_r18vd_sp1_120e_coco.pth"),
    (_points(2), 47.7, "rtdetrv2_r18vd_sp2_120e_coco.pth"),
    (_points(3), 47.8, "rtdetrv2_r18vd_sp3_120e_coco.pth"),
)
PRESETS: dict[str, RTDETRv2Config] = {
    variant.name: replace(variant, box_ap=box_ap, checkpoint=checkpoint) for variant, box_ap, checkpoint in _PUBLISHED
}

DEMO_VARIANT = "rtdetrv2_demo"
# Trained by `codetr train-demo --family rtdetrv2` on generated shapes. Wide where maps are fine: many shapes are small.
DEMO_NETWORK = RTDETRv2Config(
    DEMO_VARIANT,
    PResNetConfig(18, BLOCKS[18], stem_channels=48, widths=(48, 96, 128, 160), frozen_norm=False),
    HybridEncoderConfig(embed_dim=128, num_heads=4, feedforward_dim=512, expansion=0.5, num_rep_blocks=2),
    num_classes=len(CLASS_NAMES),
    num_queries=120,
    embed_dim=128,
    num_heads=4,
    feedforward_dim=512,
    decoder_layers=3,
    input_size=(320, 480),
    class_names=CLASS_NAMES,
)
