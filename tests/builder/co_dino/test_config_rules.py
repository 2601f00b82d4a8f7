import pytest

from builder import VariantError, from_mmdet_config
from builder.co_dino import config_pixels
from builder.co_dino import config_rules as rules
from builder.reading.settings import Free
from tests.public_configs import ABSENT, ORIGINAL_SWIN, R50, SWIN_LSJ, changed, load

# Settings that may have any value, as they decide nothing at inference, and those that are checked where they are read.
OF_TRAINING = """
activated alpha attn_drop attn_drop_rate backend_args batch_augments bbox_clip_border bbox_head beta bg_cls_weight
boxtype2tensor class_weight clip_object_border convert_weights direction dn_cfg drop_path_rate drop_rate dropout
dropout_layer eval_index ffn_drop ffn_dropout file_client_args flip_direction frozen_stages gamma ignore_empty
im2col_step in_channels init_cfg inplace lambda_1 loss_bbox loss_iou loss_weight mask_head mask_iou_head mask_pad_value
mask_roi_extractor max_pos_coords momentum multiscale_mode non_blocking norm_eval num_co_heads num_feature_levels
override pad_mask pad_seg post_norm_cfg pretrain_img_size pretrained proj_drop reduction requires_grad roi_head rpn_head
seg_pad_value sigma split_thr stage_with_dcn sync_cls_avg_factor track_running_stats train_cfg use_checkpoint
use_zero_padding with_coord_feat with_cp with_pos_coord zero_init_residual
"""
READ_ELSEWHERE = """
attn_cfgs backbone data_preprocessor img_scale iou_threshold keep_ratio min_score nms pad_val scale score_thr size
size_divisor test_cfg transforms type use_sigmoid
"""


def free_settings(section):
    """The settings of a dict of rules, and of the dicts within it, that may have any value."""
    for key, rule in section.items():
        if isinstance(rule, Free):
            yield key
        elif isinstance(rule, dict):
            yield from (f"{key}.{inner}" for inner in free_settings(rule))


def test_no_other_setting_may_have_any_value():
    sections = [rules.MODEL, rules.SAMPLING, rules.SELF_ATTENTION, rules.NMS, rules.TEST, config_pixels.PREPROCESSOR]
    sections += [*rules.BACKBONES.values(), *config_pixels.STEPS.values()]
    found = {path.rpartition(".")[2] for section in sections for path in free_settings(section)}
    assert found == {*OF_TRAINING.split(), *READ_ELSEWHERE.split()}
    decisive_elsewhere = [path for path in free_settings(rules.MODEL) if path.endswith(("in_channels", "levels"))]
    assert decisive_elsewhere == ["query_head.in_channels", "query_head.num_feature_levels"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        # Settings that the public configs leave at their defaults.
        ("backbone.act_cfg", {"type": "ReLU"}, r"backbone.act_cfg.type='ReLU'.*expected 'GELU'"),
        ("backbone.norm_cfg", {"type": "LN", "eps": 1e-6}, "backbone.norm_cfg.eps=1e-06"),
        ("backbone.norm_cfg", {"type": "BN"}, "backbone.norm_cfg.type='BN'"),
        ("backbone.use_abs_pos_embed", True, "backbone.use_abs_pos_embed=True"),
        ("backbone.qk_scale", 0.125, "backbone.qk_scale=0.125"),
        ("backbone.patch_norm", False, "backbone.patch_norm=False"),
        ("backbone.in_channels", 4, "backbone.in_channels=4"),
        ("backbone.strides", [4, 2, 2, 1], "backbone.strides"),
        ("backbone.out_indices", [0, 1, 2, 4], "backbone.out_indices"),
        ("backbone.num_heads", [6, 12, 24], "stages of the backbone"),
        ("neck.bias", True, "neck.bias=True"),
        ("neck.conv_cfg", {"type": "DCNv2"}, "neck.conv_cfg"),
        ("neck.act_cfg", ABSENT, r"neck.act_cfg=.*default.*expected None"),
        ("neck.kernel_size", ABSENT, r"neck.kernel_size=3 \(the default"),
        ("neck.norm_cfg", ABSENT, "no neck.norm_cfg"),
        ("neck.norm_cfg.eps", 1e-6, "neck.norm_cfg.eps=1e-06"),
        ("query_head.num_reg_fcs", 3, "query_head.num_reg_fcs=3"),
        ("query_head.with_box_refine", False, "query_head.with_box_refine=False"),
        ("query_head.as_two_stage", ABSENT, r"as_two_stage=False \(the default"),
        ("query_head.num_classes", ABSENT, "no query_head.num_classes"),
        ("query_head.num_classes", "80", "query_head.num_classes='80'.*whole number"),
        ("query_head.loss_cls.use_sigmoid", False, "softmax scores"),
        ("query_head.loss_cls", ABSENT, "softmax scores"),
        ("query_head.positional_encoding.offset", -0.5, "positional_encoding.offset=-0.5"),
        ("query_head.positional_encoding.scale", 1.0, "positional_encoding.scale=1.0"),
        ("query_head.positional_encoding.eps", 1e-3, "positional_encoding.eps=0.001"),
        ("query_head.transformer.two_stage_num_proposals", 300, "two_stage_num_proposals.*900 and 300"),
        ("query_head.transformer.decoder.return_intermediate", ABSENT, "return_intermediate=False"),
        ("query_head.transformer.encoder.transformerlayers.norm_cfg", {"type": "LN", "eps": 1e-6}, "eps=1e-06"),
        ("query_head.transformer.encoder.transformerlayers.ffn_num_fcs", 3, "ffn_num_fcs=3"),
        ("query_head.transformer.encoder.transformerlayers.ffn_cfgs", {"act_cfg": {"type": "GELU"}}, "'GELU'.*'ReLU'"),
        ("query_head.transformer.encoder.transformerlayers.ffn_cfgs", {"embed_dims": 64}, "ffn_cfgs.*256 and 64"),
        ("query_head.transformer.encoder.transformerlayers.attn_cfgs.value_proj_ratio", 0.5, "value_proj_ratio=0.5"),
        ("query_head.transformer.decoder.transformerlayers.attn_cfgs.0.bias", False, r"attn_cfgs\[0\].bias=False"),
        ("query_head.transformer.decoder.transformerlayers.attn_cfgs.1.num_points", 8, "num_points"),
        ("test_cfg", ABSENT, "no test_cfg"),
        ("eval_module", "two-stage", "eval_module='two-stage'"),
        ("type", "FasterRCNN", r"type='FasterRCNN'.*expected 'CoDETR'"),
        ("backbone.type", "ConvNeXt", r"backbone.type='ConvNeXt'.*SwinTransformerV1"),
    ],
)
def test_unsupported_settings_are_named(path, value, message):
    with pytest.raises(VariantError, match=message):
        from_mmdet_config(changed(load(SWIN_LSJ), f"model.{path}", value))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("depth", 34), ("dcn", {"type": "DCNv2"}), ("plugins", [{"cfg": {}}]), ("deep_stem", True), ("avg_down", True),
        ("conv_cfg", {"type": "ConvWS"}), ("num_stages", 3), ("strides", [1, 2, 2, 1]), ("dilations", [1, 1, 1, 2]),
        ("style", "tensorflow"), ("norm_cfg", {"type": "GN"}), ("norm_cfg", {"type": "BN", "eps": 1e-3}),
        ("in_channels", 1), ("stem_channels", 0), ("type", "ResNetV1d"),
    ],
)  # fmt: skip
def test_other_residual_networks_are_refused(key, value):
    with pytest.raises(VariantError, match=f"backbone.{key}"):
        from_mmdet_config(changed(load(R50), f"model.backbone.{key}", value))


@pytest.mark.parametrize(("key", "value"), [("ape", True), ("norm_layer", "BatchNorm"), ("in_chans", 1)])
def test_other_swins_of_the_original_are_refused(key, value):
    with pytest.raises(VariantError, match=f"backbone.{key}"):
        from_mmdet_config(changed(load(ORIGINAL_SWIN), f"model.backbone.{key}", value))
