import copy
import dataclasses

import pytest

from builder import VARIANTS, VariantError, from_mmdet_config, get_variant
from builder.co_dino.presets import PRESETS
from builder.variants import ResNetConfig, SwinConfig
from serving.rules import Suppression
from tests.public_configs import ORIGINAL_R50, ORIGINAL_SWIN, R50, R50_LSJ, SWIN_LSJ, changed, load, names, walk

# What each public config gives: its preset, with what the original release does otherwise. Of a model that both
# releases have, the preset is mmdetection's.
ALL_QUERIES = {"max_detections": 900}
LVIS = {"num_classes": 1203, "max_detections": 900}
READ = {
    "mmdetection-co_dino_5scale_lsj_r50_8xb2_1x_coco": ("co_dino_r50_lsj_12e", {}),
    "mmdetection-co_dino_5scale_r50_8xb2_1x_coco": ("co_dino_r50_12e", {}),
    "mmdetection-co_dino_5scale_r50_lsj_8xb2_1x_coco": ("co_dino_r50_lsj_12e", {}),
    "mmdetection-co_dino_5scale_r50_lsj_8xb2_3x_coco": ("co_dino_r50_lsj_36e", {}),
    "mmdetection-co_dino_5scale_swin_l_16xb1_16e_o365tococo": ("co_dino_swin_l_o365", {}),
    "mmdetection-co_dino_5scale_swin_l_16xb1_1x_coco": ("co_dino_swin_l_12e", {}),
    "mmdetection-co_dino_5scale_swin_l_16xb1_3x_coco": ("co_dino_swin_l_36e", {}),
    "mmdetection-co_dino_5scale_swin_l_lsj_16xb1_1x_coco": ("co_dino_swin_l_lsj_12e", {}),
    "mmdetection-co_dino_5scale_swin_l_lsj_16xb1_3x_coco": ("co_dino_swin_l_lsj_36e", {}),
    "sense_x-co_dino_5scale_9encoder_lsj_r50_1x_coco": ("co_dino_r50_9enc_lsj_12e", {}),
    "sense_x-co_dino_5scale_9encoder_lsj_r50_3x_coco": ("co_dino_r50_9enc_lsj_36e", {}),
    "sense_x-co_dino_5scale_lsj_r50_1x_coco": ("co_dino_r50_lsj_12e", ALL_QUERIES),
    "sense_x-co_dino_5scale_lsj_r50_1x_lvis": ("co_dino_r50_lsj_12e", LVIS),
    "sense_x-co_dino_5scale_lsj_r50_3x_coco": ("co_dino_r50_lsj_36e", ALL_QUERIES),
    "sense_x-co_dino_5scale_lsj_swin_large_16e_o365tolvis": ("co_dino_swin_l_lsj_o365_lvis", {}),
    "sense_x-co_dino_5scale_lsj_swin_large_1x_coco": ("co_dino_swin_l_lsj_12e", ALL_QUERIES),
    "sense_x-co_dino_5scale_lsj_swin_large_2x_coco": ("co_dino_swin_l_lsj_24e", {}),
    "sense_x-co_dino_5scale_lsj_swin_large_3x_coco": ("co_dino_swin_l_lsj_36e", ALL_QUERIES),
    "sense_x-co_dino_5scale_lsj_swin_large_3x_lvis": ("co_dino_swin_l_lsj_lvis_36e", {}),
    "sense_x-co_dino_5scale_r50_1x_coco": ("co_dino_r50_12e", ALL_QUERIES),
    "sense_x-co_dino_5scale_r50_1x_lvis": ("co_dino_r50_12e", LVIS),
    "sense_x-co_dino_5scale_swin_large_16e_o365tococo": ("co_dino_swin_l_o365", ALL_QUERIES),
    "sense_x-co_dino_5scale_swin_large_1x_coco": ("co_dino_swin_l_12e", ALL_QUERIES),
    "sense_x-co_dino_5scale_swin_large_2x_coco": ("co_dino_swin_l_24e", {}),
    "sense_x-co_dino_5scale_swin_large_3x_coco": ("co_dino_swin_l_36e", ALL_QUERIES),
}
REFUSED = {"co_deformable_detr": "is Co-Deformable-DETR, which is not supported", "vit_large": "backbone.type='ViT'"}


@pytest.mark.parametrize("name", READ)
def test_public_config_is_its_preset(name):
    preset, changes = READ[name]
    unpublished = {"checkpoint": None, "box_ap": None, "epochs": None}
    assert from_mmdet_config(load(name), preset) == dataclasses.replace(VARIANTS[preset], **changes, **unpublished)


@pytest.mark.parametrize("name", [name for name in names() if name not in READ])
def test_other_public_configs_are_refused_in_one_line(name):
    (message,) = [message for part, message in REFUSED.items() if part in name]
    with pytest.raises(VariantError) as error:
        from_mmdet_config(load(name))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_every_preset_has_a_public_config():
    assert set(READ) < set(names())
    assert {preset for preset, _ in READ.values()} == set(PRESETS)


def test_reads_the_golden_config(golden_config):
    variant = from_mmdet_config(golden_config, "tiny")
    assert variant.backbone == SwinConfig(16, (2, 2, 2, 2), (1, 2, 4, 8), 7, 2)
    assert (variant.num_queries, variant.num_classes, variant.max_detections) == (50, 8, 300)
    assert (variant.embed_dim, variant.num_heads, variant.encoder_layers, variant.decoder_layers) == (64, 8, 2, 2)
    assert (variant.feedforward_dim, variant.position_temperature, variant.augmentation) == (128, 20, "DETR")
    assert variant.rules.suppression == Suppression("none")


def test_scopes_of_types_are_no_matter():
    config = load(SWIN_LSJ)
    scoped = copy.deepcopy(config)
    for path, value in walk(config):
        if path.endswith(".type"):
            scoped = changed(scoped, path, f"mmdet.{value}")
    scoped["model"]["query_head"]["_scope_"] = "mmdet"
    assert scoped["model"]["neck"]["norm_cfg"]["type"] == "mmdet.GN"
    assert from_mmdet_config(scoped) == from_mmdet_config(config)


# Parts of a model that training alone reads, by the last key of their path.
TRAINING = {
    "rpn_head", "roi_head", "bbox_head", "train_cfg", "dn_cfg", "loss_bbox", "loss_iou", "init_cfg", "frozen_stages",
    "norm_eval", "requires_grad", "drop_rate", "attn_drop_rate", "drop_path_rate", "dropout", "ffn_dropout", "with_cp",
    "convert_weights", "pretrained", "use_checkpoint", "pretrain_img_size", "num_co_heads", "with_coord_feat",
    "with_pos_coord", "sync_cls_avg_factor", "pad_mask", "batch_augments", "beta", "loss_weight", "flip_ratio",
    "meta_keys", "keys", "with_bbox", "with_mask", "backend_args",
}  # fmt: skip
# Not decisive for other reasons: the head's `in_channels` and `num_feature_levels` are read by nothing, neither are the
# settings of the auxiliary heads' tests, and the loss counts by its `use_sigmoid`.
UNREAD = ("query_head.in_channels", "query_head.num_feature_levels", "test_cfg.1", "test_cfg.2", "loss_cls.type")
WHOLE_CONFIGS = [SWIN_LSJ, R50, R50_LSJ, ORIGINAL_R50, ORIGINAL_SWIN]


def decisive(config):
    """The paths of a config that decide its network: those of the model, and of the pipeline of its test."""
    for path, value in walk(config):
        of_test = path.startswith(("test_dataloader.dataset.pipeline", "data.test.pipeline"))
        if not (path.startswith("model.") or of_test) or TRAINING & set(path.split(".")):
            continue
        if not any(part in path for part in UNREAD):
            yield path, value


@pytest.mark.parametrize("name", WHOLE_CONFIGS)
def test_an_unknown_key_is_refused_in_every_dict(name):
    config = load(name)
    ignored = ("LoadAnnotations", "PackDetInputs", "ImageToTensor", "Collect")
    dicts = [path for path, value in decisive(config) if isinstance(value, dict) and value.get("type") not in ignored]
    assert len(dicts) >= 20
    for path in dicts:
        try:
            from_mmdet_config(changed(config, f"{path}.invented", 1))
        except VariantError as error:
            assert "invented=1" in str(error)  # noqa: PT017  # the message of each path
        else:
            pytest.fail(f"{path}.invented passed")


# Where a test pipeline is given, mmdetection's Pad decides what `use_lsj` decides without. The original cuts to
# `max_per_img` after NMS, and masks the padding of `size_divisor`.
WITHOUT_EFFECT = {"mmdetection": ("use_lsj",), "sense_x": ("test_cfg.0.max_per_img", "size_divisor")}


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if value is None:
        return {"type": "Other"}
    if isinstance(value, str):
        return value + "Other"
    return value * 2 if isinstance(value, float) else value + 1


@pytest.mark.parametrize("name", WHOLE_CONFIGS)
def test_every_other_value_changes_the_variant_or_is_refused(name):
    config = load(name)
    usual = from_mmdet_config(config)
    leaves = [(path, value) for path, value in decisive(config) if not isinstance(value, (dict, list))]
    assert len(leaves) > 60
    for path, value in leaves:
        if path.endswith(WITHOUT_EFFECT[name.split("-")[0]]):
            continue
        try:
            assert from_mmdet_config(changed(config, path, other(value))) != usual, path
        except VariantError as error:
            assert "\n" not in str(error)  # noqa: PT017  # of each path


def test_what_only_training_reads_does_not_matter():
    config = load(ORIGINAL_SWIN)
    usual = from_mmdet_config(config)
    paths = [path for path, _ in walk(config["model"]) if TRAINING & set(path.split("."))]
    assert len(paths) > 100
    for path in paths:
        assert from_mmdet_config(changed(config, f"model.{path}", {"other": 1})) == usual, path


def test_defaults_of_swin_are_swin_t():
    backbone = {"type": "SwinTransformerV1"}
    config = changed(load(ORIGINAL_SWIN), "model.backbone", backbone)
    config = changed(config, "model.neck.in_channels", [96, 192, 384, 768])
    assert from_mmdet_config(config).backbone == SwinConfig()


def test_r101_with_four_levels_300_queries_and_one_class():
    config = changed(load(R50), "model.backbone.depth", 101)
    head = config["model"]["query_head"]
    head.update(num_query=300, num_classes=1)
    config["model"]["neck"].update(num_outs=4)
    del head["transformer"]["num_feature_levels"]  # 4 is the default of both
    for part in ("encoder.transformerlayers.attn_cfgs", "decoder.transformerlayers.attn_cfgs.1"):
        config = changed(config, f"model.query_head.transformer.{part}.num_levels", 4)
    variant = from_mmdet_config(config)
    assert variant == dataclasses.replace(
        get_variant("co_dino_r50_12e").derive("custom", num_classes=1, num_queries=300),
        backbone=ResNetConfig(101),
        num_levels=4,
    )


@pytest.mark.parametrize(
    ("settings", "expected", "rows"),
    [
        pytest.param({"nms": None}, Suppression("none"), 300, id="no NMS"),
        pytest.param({"max_per_img": 1000}, Suppression(), 1000, id="more detections"),
        pytest.param({"max_per_img": 100, "score_thr": 0.05}, Suppression(score_threshold=0.05), 100, id="threshold"),
        pytest.param({"nms": {"iou_threshold": 0.5}}, Suppression("hard", 0.5), 300, id="NMS is hard by default"),
        pytest.param({"nms": {"type": "soft_nms"}}, Suppression("soft", 0.3), 300, id="mmcv's default IoU"),
        pytest.param(
            {"nms": {"type": "soft_nms", "iou_threshold": 0.6, "min_score": 0.05, "class_agnostic": True}},
            Suppression("soft", 0.6, 0.05, class_agnostic=True), 300, id="all of soft NMS",
        ),
    ],
)  # fmt: skip
def test_reads_the_suppression_of_the_test(settings, expected, rows):
    config = load(R50)
    config["model"]["test_cfg"][0].update(settings)
    variant = from_mmdet_config(config)
    assert (variant.rules.suppression, variant.max_detections) == (expected, rows)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nms": {"type": "soft_nms", "method": "gaussian"}}, r"nms.method='gaussian'.*expected 'linear'"),
        ({"nms": {"type": "nms"}}, r"no test_cfg\[0\].nms.iou_threshold"),
        ({"nms": {"type": "nms", "iou_threshold": 0.5, "max_num": 100}}, "nms.max_num=100"),
        ({"nms": {"type": "nms_match", "iou_threshold": 0.5}}, "nms.type='nms_match'"),
        ({"nms": {"iou_threshold": 80}}, "iou_threshold: expected a number in 0..1, got 80"),
        ({"score_thr": "0.3"}, "expected a number in 0..1, got '0.3'"),
        ({"max_per_img": 0}, "max_per_img=0"),
        ({"max_per_img": 80 * 900 + 1}, "lower max_detections"),
    ],
)
def test_other_suppressions_are_refused(settings, message):
    config = load(R50)
    config["model"]["test_cfg"][0].update(settings)
    with pytest.raises(VariantError, match=message):
        from_mmdet_config(config)


ODD_VALUES = (None, "x", [], {}, -1, 1.5, True, [{}], [None], {"type": ["x"]}, float("nan"))


@pytest.mark.parametrize("name", [R50_LSJ, ORIGINAL_SWIN])
def test_nonsense_is_a_refusal_in_one_line_and_nothing_else(name):
    config = load(name)
    for path, usual in walk(config):
        if any(head in path for head in ("rpn_head", "roi_head", "bbox_head", "train_cfg")):
            continue
        for value in (*ODD_VALUES, [usual]):
            try:
                from_mmdet_config(changed(config, path, value))
            except VariantError as error:
                assert "\n" not in str(error)  # noqa: PT017  # of each path


@pytest.mark.parametrize("config", [None, [], {}, {"model": None}, {"model": {"type": "CoDETR"}}, {"type": "CoDETR"}])
def test_what_is_no_config_is_refused(config):
    with pytest.raises(VariantError, match=r"expected|the config has no"):
        from_mmdet_config(config)
