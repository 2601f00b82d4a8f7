"""The published Co-DINO models; `from_mmdet_config` reads any other."""

from __future__ import annotations

from builder.co_dino.config import ResNetConfig, SwinConfig, Variant, VariantError
from builder.mmdet_config import from_mmdet_config

__all__ = ["VARIANTS", "ResNetConfig", "SwinConfig", "Variant", "VariantError", "from_mmdet_config", "get_variant"]

SWIN_L = SwinConfig(192, (2, 2, 18, 2), (6, 12, 24, 48), window_size=12)
R50 = ResNetConfig(50)
_LSJ_INPUT = (1024, 1024)

# Source: the model table of mmdetection `projects/CO-DETR/README.md` and the configs it names.
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            "co_dino_r50_lsj_12e",
            R50,
            "LSJ",
            input_size=_LSJ_INPUT,
            checkpoint="co_dino_5scale_r50_lsj_8xb2_1x_coco-69a72d67.pth",
            box_ap=52.0,
            epochs=12,
        ),
        Variant("co_dino_r50_12e", R50, checkpoint="co_dino_5scale_r50_1x_coco-7481f903.pth", box_ap=52.1, epochs=12),
        Variant(
            "co_dino_r50_lsj_36e",
            R50,
            "LSJ",
            input_size=_LSJ_INPUT,
            checkpoint="co_dino_5scale_lsj_r50_3x_coco-fe5a6829.pth",
            box_ap=54.8,
            epochs=36,
        ),
        Variant(
            "co_dino_swin_l_12e",
            SWIN_L,
            checkpoint="co_dino_5scale_swin_large_1x_coco-27c13da4.pth",
            box_ap=58.9,
            epochs=12,
        ),
        Variant(
            "co_dino_swin_l_lsj_12e",
            SWIN_L,
            "LSJ",
            input_size=_LSJ_INPUT,
            checkpoint="co_dino_5scale_lsj_swin_large_1x_coco-3af73af2.pth",
            box_ap=59.3,
            epochs=12,
        ),
        Variant(
            "co_dino_swin_l_36e",
            SWIN_L,
            checkpoint="co_dino_5scale_swin_large_3x_coco-d7a6d8af.pth",
            box_ap=60.0,
            epochs=36,
        ),
        Variant(
            "co_dino_swin_l_lsj_36e",
            SWIN_L,
            "LSJ",
            input_size=_LSJ_INPUT,
            # The table links the 12-epoch file here; this is the name in the authors' own release.
            checkpoint="co_dino_5scale_lsj_swin_large_3x_coco.pth",
            box_ap=60.7,
            epochs=36,
        ),
        Variant(
            "co_dino_swin_l_o365",
            SWIN_L,
            input_size=(1280, 2048),
            checkpoint="co_dino_5scale_swin_large_16e_o365tococo-614254c9.pth",
            box_ap=64.1,
            epochs=16,
        ),
    )
}


def get_variant(name: str) -> Variant:
    """Return the preset `name`; raises VariantError with the known names."""
    if name not in VARIANTS:
        raise VariantError(f"unknown variant {name!r}; known: {', '.join(VARIANTS)}")
    return VARIANTS[name]
