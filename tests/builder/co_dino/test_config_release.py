import pytest

from builder import VariantError, from_mmdet_config
from tests.public_configs import ABSENT, ORIGINAL_LSJ, ORIGINAL_R50, ORIGINAL_SWIN, R50, R50_LSJ, changed, load


def bare(name):
    """The model dict alone, without the switch of its padding."""
    model = load(name)["model"]
    return {key: value for key, value in model.items() if key not in ("use_lsj", "with_attn_mask")}


def without_marks(model):
    """A model dict from which nobody can tell its release."""
    for path in ("data_preprocessor", "train_cfg", "pretrained"):
        model.pop(path, None)
    for key in ("dn_cfg", "with_box_refine", "mixed_selection"):
        model["query_head"].pop(key, None)
    return model


@pytest.mark.parametrize(
    ("config", "masks", "candidates"),
    [
        pytest.param(bare(ORIGINAL_R50), True, 900, id="the original masks"),
        pytest.param(bare(ORIGINAL_SWIN), True, 900, id="SwinTransformerV1"),
        pytest.param(bare(R50), False, 300, id="mmdetection does not"),
        pytest.param(without_marks(bare(ORIGINAL_R50)), False, 300, id="nor does what nobody can tell"),
        pytest.param(without_marks(bare(ORIGINAL_SWIN)), True, 900, id="SwinTransformerV1 tells"),
        pytest.param({**without_marks(bare(R50)), "with_attn_mask": True}, True, 300, id="early mmdetection"),
        pytest.param(changed(load(ORIGINAL_LSJ), "model.with_attn_mask", ABSENT), None, 900, id="Pad, but masked"),
        pytest.param(changed(load(ORIGINAL_R50), "model.with_attn_mask", False), True, 900, id="no fixed padding"),
        pytest.param(changed(load(R50), "model.use_lsj", ABSENT), True, 300, id="mmdetection without Pad"),
        pytest.param(changed(load(R50_LSJ), "model.use_lsj", ABSENT), False, 300, id="mmdetection with Pad"),
    ],
)
def test_defaults_follow_the_release(config, masks, candidates):
    if masks is None:
        with pytest.raises(VariantError, match="a colour that attention ignores"):
            from_mmdet_config(config)
        return
    variant = from_mmdet_config(config)
    assert (variant.masks_padding, variant.max_detections) == (masks, candidates)


@pytest.mark.parametrize(
    "path",
    [
        "query_head.with_box_refine", "query_head.mixed_selection", "query_head.dn_cfg.noise_scale",
        "query_head.dn_cfg.type",
    ],
)  # fmt: skip
def test_one_mark_is_enough(path):
    model = without_marks(bare(ORIGINAL_R50))
    assert not from_mmdet_config(model).masks_padding
    assert from_mmdet_config(changed(model, path, True)).masks_padding


def test_a_mix_of_both_releases_is_refused():
    config = changed(load(R50), "model.query_head.mixed_selection", True)
    with pytest.raises(VariantError, match=r"mixed_selection of the original release and .* of mmdetection's"):
        from_mmdet_config(config)


@pytest.mark.parametrize("value", [True, False])
def test_switches_must_not_contradict(value):
    model = {**bare(R50), "use_lsj": value, "with_attn_mask": value}
    with pytest.raises(VariantError, match="contradict each other"):
        from_mmdet_config(model)
    assert from_mmdet_config({**model, "with_attn_mask": not value}).masks_padding != value
