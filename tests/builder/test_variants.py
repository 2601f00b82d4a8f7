import pytest

from builder import VARIANTS, VariantError, get_variant
from builder.co_dino.presets import DEMO_VARIANT, PRESETS
from builder.detr.config import PRESETS as DETR
from builder.rtdetrv2.presets import DEMO_VARIANT as RTDETRV2_DEMO
from builder.rtdetrv2.presets import PRESETS as RTDETRV2


def test_variants_are_the_presets_and_the_demos():
    assert set(VARIANTS) == {*PRESETS, DEMO_VARIANT, *RTDETRV2, RTDETRV2_DEMO, *DETR}
    assert all(get_variant(name).name == name for name in VARIANTS)


def test_unknown_variant_lists_the_known_ones():
    with pytest.raises(VariantError, match=r"'co_dino_x'.*co_dino_r50_12e"):
        get_variant("co_dino_x")
