"""The published Co-DINO models; `from_mmdet_config` reads any other."""

from __future__ import annotations

from typing import Literal

from builder.co_dino.config import ResNetConfig, SwinConfig, Variant, VariantError
from builder.demo import DEMO_NETWORK, DEMO_VARIANT
from builder.mmdet_config import from_mmdet_config

__all__ = ["VARIANTS", "ResNetConfig", "SwinConfig", "Variant", "VariantError", "from_mmdet_config", "get_variant"]

SWIN_L = SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), window_size=12)
R50 = ResNetConfig(50)

# Source: the model table of mmdetection `projects/CO-DETR/README.md` and the configs it names. For the last but one the
# table links the 12-epoch file; the name given here is the one in the authors' own release.
_PUBLISHED: tuple[tuple[str, SwinConfig | ResNetConfig, Literal["DETR", "LSJ"], int, float, str], ...] = (
    ("co_dino_r50_lsj_12e", R50, "LSJ", 12, 52.0, "co_dino_5scale_r50_lsj_8xb2_1x_coco-69a72d67.pth"),
    ("co_dino_r50_12e", R50, "DETR", 12, 52.1, "co_dino_5scale_r50_1x_coco-7481f903.pth"),
    ("co_dino_r50_lsj_36e", R50, "LSJ", 36, 54.8, "co_dino_5scale_lsj_r50_3x_coco-fe5a6829.pth"),
    ("co_dino_swin_l_12e", SWIN_L, "DETR", 12, 58.9, "co_dino_5scale_swin_large_1x_coco-27c13da4.pth"),
    ("co_dino_swin_l_lsj_12e", SWIN_L, "LSJ", 12, 59.3, "co_dino_5scale_lsj_swin_large_1x_coco-3af73af2.pth"),
    ("co_dino_swin_l_36e", SWIN_L, "DETR", 36, 60.0, "co_dino_5scale_swin_large_3x_coco-d7a6d8af.pth"),
    ("co_dino_swin_l_lsj_36e", SWIN_L, "LSJ", 36, 60.7, "co_dino_5scale_lsj_swin_large_3x_coco.pth"),
    ("co_dino_swin_l_o365", SWIN_L, "DETR", 16, 64.1, "co_dino_5scale_swin_large_16e_o365tococo-614254c9.pth"),
)
# Test-time (height, width) of the configs where it is not the usual (800, 1333).
_INPUT_SIZES = {"co_dino_swin_l_o365": (1280, 2048)} | {row[0]: (1024, 1024) for row in _PUBLISHED if row[2] == "LSJ"}

VARIANTS: dict[str, Variant] = {
    name: Variant(
        name,
        backbone,
        augmentation,
        input_size=_INPUT_SIZES.get(name, (800, 1333)),
        checkpoint=checkpoint,
        box_ap=box_ap,
        epochs=epochs,
    )
    for name, backbone, augmentation, epochs, box_ap, checkpoint in _PUBLISHED
}
VARIANTS[DEMO_VARIANT] = DEMO_NETWORK


def get_variant(name: str) -> Variant:
    """Return the preset `name`; raises VariantError with the known names."""
    if name not in VARIANTS:
        raise VariantError(f"unknown variant {name!r}; known: {', '.join(VARIANTS)}")
    return VARIANTS[name]
