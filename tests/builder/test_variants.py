import copy
import dataclasses

import pytest

from builder import VARIANTS, VariantError, from_mmdet_config, get_variant
from builder.variants import ResNetConfig, SwinConfig

PUBLISHED_AP = [52.0, 52.1, 54.8, 58.9, 59.3, 60.0, 60.7, 64.1]


def test_the_eight_published_models():
    published = [variant for variant in VARIANTS.values() if variant.box_ap is not None]
    assert [variant.box_ap for variant in published] == PUBLISHED_AP
    assert all(variant.checkpoint.endswith(".pth") for variant in published)
    assert {variant.name for variant in published if not variant.masks_padding} == {
        name for name in VARIANTS if "_lsj_" in name
    }


def test_variants_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_variant("co_dino_r50_12e").num_classes = 3


def test_unknown_variant_lists_the_known_ones():
    with pytest.raises(VariantError, match=r"'co_dino_x'.*co_dino_r50_12e"):
        get_variant("co_dino_x")


def test_derive_changes_classes_and_queries_only():
    base = get_variant("co_dino_swin_l_o365")
    derived = base.derive("cats", class_names=("cat", "lynx", "puma"), num_queries=300)
    assert (derived.num_classes, derived.num_queries, derived.max_detections) == (3, 300, 300)
    assert derived.backbone == base.backbone
    assert derived.checkpoint is None
    assert derived.box_ap is None


def test_derive_lowers_detections_to_what_the_queries_give():
    assert get_variant("co_dino_r50_12e").derive("one", num_classes=1, num_queries=100).max_detections == 100


def test_class_names_must_fit_the_count():
    with pytest.raises(VariantError, match="num_classes=3 but 2 class names"):
        get_variant("co_dino_r50_12e").derive("x", num_classes=3, class_names=("a", "b"))


def test_reads_the_golden_config(golden_config):
    variant = from_mmdet_config(golden_config, "tiny")
    assert variant.backbone == SwinConfig(16, (2, 2, 2, 2), (1, 2, 4, 8), 7, 2)
    assert (variant.num_queries, variant.num_classes, variant.max_detections) == (50, 8, 300)
    assert (variant.embed_dim, variant.num_heads, variant.encoder_layers, variant.decoder_layers) == (64, 8, 2, 2)
    assert (variant.feedforward_dim, variant.position_temperature, variant.augmentation) == (128, 20, "DETR")


def r50_config(golden_config):
    """The published R50 config's model dict, with mmcv's defaults left out as it leaves them out."""
    config = copy.deepcopy(golden_config)
    config["backbone"] = {"type": "ResNet", "depth": 50, "style": "pytorch", "norm_cfg": {"type": "BN"}}
    config["neck"].update(in_channels=[256, 512, 1024, 2048], out_channels=256)
    config["query_head"].update(num_query=900, num_classes=80)
    config["query_head"]["positional_encoding"]["num_feats"] = 128
    sampling = {"type": "MultiScaleDeformableAttention", "embed_dims": 256, "num_levels": 5, "dropout": 0.0}
    self_attention = {"type": "MultiheadAttention", "embed_dims": 256, "num_heads": 8}
    for part, attention in (("encoder", sampling), ("decoder", [self_attention, sampling])):
        stack = config["query_head"]["transformer"][part]
        stack["num_layers"] = 6
        layer = stack["transformerlayers"]
        del layer["ffn_cfgs"]
        layer.update(attn_cfgs=attention, feedforward_channels=2048)
    return config


def test_reads_the_published_r50_config(golden_config):
    preset = get_variant("co_dino_r50_12e")
    variant = from_mmdet_config({"model": r50_config(golden_config)}, preset.name)
    assert variant == dataclasses.replace(preset, checkpoint=None, box_ap=None, epochs=None)
    assert isinstance(variant.backbone, ResNetConfig)


def test_lsj_is_mmdetections_default(golden_config):
    config = {key: value for key, value in golden_config.items() if key != "use_lsj"}
    assert not from_mmdet_config(config).masks_padding


def test_reads_class_names_from_metainfo(golden_config):
    names = tuple("abcdefgh")
    assert from_mmdet_config({"model": golden_config, "metainfo": {"classes": list(names)}}).class_names == names


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("type", "FasterRCNN", r"type='FasterRCNN'.*expected 'CoDETR'"),
        ("backbone.type", "ConvNeXt", r"backbone.type='ConvNeXt'"),
        ("backbone.use_abs_pos_embed", True, "backbone.use_abs_pos_embed=True"),
        ("neck.in_channels", [1, 2, 3, 4], "neck.in_channels"),
        ("neck.kernel_size", 3, r"neck.kernel_size=3.*expected 1"),
        ("query_head.as_two_stage", False, "as_two_stage=False"),
        ("query_head.num_classes", None, "num_classes"),
        ("query_head.transformer.encoder.transformerlayers.ffn_cfgs.act_cfg", {"type": "GELU"}, "ReLU"),
        ("data_preprocessor.mean", [0, 0, 0], "data_preprocessor.mean"),
        ("eval_module", "two-stage", "eval_module='two-stage'"),
    ],
)
def test_unsupported_settings_are_named(golden_config, path, value, message):
    config = copy.deepcopy(golden_config)
    *parents, key = path.split(".")
    target = config
    for parent in parents:
        target = target[parent]
    if value is None:
        del target[key]
    else:
        target[key] = value
    with pytest.raises(VariantError, match=message):
        from_mmdet_config(config)
