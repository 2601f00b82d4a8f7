"""The published Co-DINO models, and the demo's."""

from __future__ import annotations

from typing import Literal

from builder.co_dino.config import ResNetConfig, SwinConfig, Variant
from demo.shapes import CLASS_NAMES

SWIN_L = SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), window_size=12)
R50 = ResNetConfig(50)
_Row = tuple[str, SwinConfig | ResNetConfig, Literal["DETR", "LSJ"], int, float, str]

# Source: the model table of mmdetection `projects/CO-DETR/README.md` and the configs it names. For the last but one the
# table links the 12-epoch file; the name given here is the one in the authors' own release.
_MMDETECTION: tuple[_Row, ...] = (
    ("co_dino_r50_lsj_12e", R50, "LSJ", 12, 52.0, "co_dino_5scale_r50_lsj_8xb2_1x_coco-69a72d67.pth"),
    ("co_dino_r50_12e", R50, "DETR", 12, 52.1, "co_dino_5scale_r50_1x_coco-7481f903.pth"),
    ("co_dino_r50_lsj_36e", R50, "LSJ", 36, 54.8, "co_dino_5scale_lsj_r50_3x_coco-fe5a6829.pth"),
    ("co_dino_swin_l_12e", SWIN_L, "DETR", 12, 58.9, "co_dino_5scale_swin_large_1x_coco-27c13da4.pth"),
    ("co_dino_swin_l_lsj_12e", SWIN_L, "LSJ", 12, 59.3, "co_dino_5scale_lsj_swin_large_1x_coco-3af73af2.pth"),
    ("co_dino_swin_l_36e", SWIN_L, "DETR", 36, 60.0, "co_dino_5scale_swin_large_3x_coco-d7a6d8af.pth"),
    ("co_dino_swin_l_lsj_36e", SWIN_L, "LSJ", 36, 60.7, "co_dino_5scale_lsj_swin_large_3x_coco.pth"),
    ("co_dino_swin_l_o365", SWIN_L, "DETR", 16, 64.1, "co_dino_5scale_swin_large_16e_o365tococo-614254c9.pth"),
)
# Source: the model tables of Sense-X/Co-DETR `README.md`; models that only the authors' release has. Its files are
# called like their configs.
_ORIGINAL: tuple[_Row, ...] = (
    ("co_dino_r50_9enc_lsj_12e", R50, "LSJ", 12, 52.6, "co_dino_5scale_9encoder_lsj_r50_1x_coco.pth"),
    ("co_dino_r50_9enc_lsj_36e", R50, "LSJ", 36, 55.4, "co_dino_5scale_9encoder_lsj_r50_3x_coco.pth"),
    ("co_dino_swin_l_24e", SWIN_L, "DETR", 24, 59.8, "co_dino_5scale_swin_large_2x_coco.pth"),
    ("co_dino_swin_l_lsj_24e", SWIN_L, "LSJ", 24, 60.4, "co_dino_5scale_lsj_swin_large_2x_coco.pth"),
    ("co_dino_swin_l_lsj_lvis_36e", SWIN_L, "LSJ", 36, 56.9, "co_dino_5scale_lsj_swin_large_3x_lvis.pth"),
    ("co_dino_swin_l_lsj_o365_lvis", SWIN_L, "LSJ", 16, 64.5, "co_dino_5scale_lsj_swin_large_16e_o365tolvis.pth"),
)
LVIS_CLASSES = 1203
# The authors' release runs NMS on as many candidates as there are queries.
ORIGINAL_CANDIDATES = 900


def _input_size(name: str, backbone: SwinConfig | ResNetConfig, augmentation: str) -> tuple[int, int]:
    """Return the (height, width) of the config's test pipeline."""
    if name == "co_dino_swin_l_lsj_o365_lvis":
        return 1536, 1536
    if name == "co_dino_swin_l_o365":
        return 1280, 2048
    if augmentation == "LSJ":
        return (1024, 1024) if backbone is R50 else (1280, 1280)
    return 800, 1333


def _variant(row: _Row, max_detections: int) -> Variant:
    name, backbone, augmentation, epochs, box_ap, checkpoint = row
    return Variant(
        name,
        backbone,
        augmentation,
        num_classes=LVIS_CLASSES if "lvis" in name else 80,
        max_detections=max_detections,
        encoder_layers=9 if "9enc" in name else 6,
        input_size=_input_size(name, backbone, augmentation),
        checkpoint=checkpoint,
        box_ap=box_ap,
        epochs=epochs,
    )


PRESETS: dict[str, Variant] = {row[0]: _variant(row, 300) for row in _MMDETECTION} | {
    row[0]: _variant(row, ORIGINAL_CANDIDATES) for row in _ORIGINAL
}

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
