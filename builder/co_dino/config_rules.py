"""Which settings of an mmdetection config this network implements.

Names and defaults: mmdetection 2.25 and 3.3 with mmcv (`ResNet`, `SwinTransformer`, `ChannelMapper`, the transformer
layers), Sense-X/Co-DETR `projects/models`, and mmdetection `projects/CO-DETR/codetr`.
"""

from __future__ import annotations

import math

from builder.reading.settings import FREE, NUMBER, REQUIRED, WHOLE, WHOLES, Is, Rules, free, only

_RELU: Rules = {"type": only("ReLU"), "inplace": FREE}
_GELU: Rules = {"type": only("GELU")}
_LAYER_NORM: Rules = {"type": only("LN", default=REQUIRED), "eps": only(1e-5), "requires_grad": FREE}
_GROUP_NORM: Rules = {
    "type": only("GN", default=REQUIRED),
    "num_groups": WHOLE,
    "eps": only(1e-5),
    "requires_grad": FREE,
}
_BATCH_NORM: Rules = {
    "type": only("BN", "SyncBN", default=REQUIRED),
    "eps": only(1e-5),
    **free("requires_grad", "momentum", "track_running_stats"),
}
_FFN: Rules = {
    "type": only("FFN"),
    "embed_dims": WHOLE,
    "feedforward_channels": WHOLE,
    "num_fcs": only(2),
    "act_cfg": _RELU,
    "add_identity": only(True),
    "layer_scale_init_value": only(0.0),
    "ffn_drop": FREE,
    "dropout_layer": FREE,
    "init_cfg": FREE,
}
SAMPLING: Rules = {
    "type": only("MultiScaleDeformableAttention", default=REQUIRED),
    "embed_dims": WHOLE,
    "num_heads": WHOLE,
    "num_levels": WHOLE,
    "num_points": WHOLE,
    "value_proj_ratio": only(1.0),
    "batch_first": only(False),
    "norm_cfg": only(None),
    "im2col_step": FREE,
    "dropout": FREE,
    "init_cfg": FREE,
}
SELF_ATTENTION: Rules = {
    "type": only("MultiheadAttention", default=REQUIRED),
    "embed_dims": WHOLE,
    "num_heads": WHOLE,
    "bias": only(True),
    "batch_first": only(False),
    "attn_drop": FREE,
    "proj_drop": FREE,
    "dropout": FREE,
    "dropout_layer": FREE,
    "init_cfg": FREE,
}


def _stack(kind: str, layer_kinds: tuple[str, ...], order: tuple[str, ...], more: Rules) -> Rules:
    """Return the rules of the encoder or the decoder; `attn_cfgs` is checked apart, as it may be a list."""
    layer: Rules = {
        "type": only(*layer_kinds, default=REQUIRED),
        "attn_cfgs": FREE,
        "ffn_cfgs": _FFN,
        "feedforward_channels": WHOLE,
        "ffn_num_fcs": only(2),
        "act_cfg": _RELU,
        "norm_cfg": _LAYER_NORM,
        "operation_order": only(order, default=REQUIRED),
        "batch_first": only(False),
        "ffn_dropout": FREE,
        "with_cp": FREE,
        "init_cfg": FREE,
    }
    return {"type": only(kind, default=REQUIRED), "num_layers": WHOLE, "transformerlayers": layer, **more}


_TRANSFORMER: Rules = {
    "type": only("CoDinoTransformer", default=REQUIRED),
    "as_two_stage": only(True),
    "mixed_selection": only(True),
    "num_feature_levels": WHOLE,
    "two_stage_num_proposals": WHOLE,
    "act_cfg": _RELU,
    "encoder": _stack(
        "DetrTransformerEncoder",
        ("BaseTransformerLayer", "DetrTransformerEncoderLayer"),
        ("self_attn", "norm", "ffn", "norm"),
        {"with_cp": FREE, "init_cfg": FREE, "post_norm_cfg": FREE},  # a post-norm encoder has no further norm
    ),
    "decoder": _stack(
        "DinoTransformerDecoder",
        ("DetrTransformerDecoderLayer", "BaseTransformerLayer"),
        ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),
        {"return_intermediate": only(True, default=False), "init_cfg": FREE},
    ),
    "with_pos_coord": FREE,  # of the auxiliary heads, as the next two
    "with_coord_feat": FREE,
    "num_co_heads": FREE,
    "init_cfg": FREE,
}
_HEAD: Rules = {
    "type": only("CoDINOHead", default=REQUIRED),
    "num_classes": WHOLE,
    "num_query": WHOLE,
    "embed_dims": WHOLE,
    "num_reg_fcs": only(2),
    "as_two_stage": only(True, default=False),
    "with_box_refine": only(True),
    "mixed_selection": only(True),
    "transformer": _TRANSFORMER,
    "positional_encoding": {
        "type": only("SinePositionalEncoding", default=REQUIRED),
        "num_feats": WHOLE,
        "temperature": NUMBER,
        "normalize": only(True, default=False),
        "scale": only(2 * math.pi),
        "eps": only(1e-6),
        "offset": only(0.0),
        "init_cfg": FREE,
    },
    # Whether scores are sigmoids; the rest of a loss is training's.
    "loss_cls": {
        "type": FREE,
        "use_sigmoid": FREE,
        **free("beta", "gamma", "alpha", "loss_weight", "reduction", "class_weight", "bg_cls_weight", "activated"),
    },
    **free("loss_bbox", "loss_iou", "dn_cfg", "sync_cls_avg_factor", "max_pos_coords", "lambda_1"),
    **free("in_channels", "num_feature_levels", "use_zero_padding", "bg_cls_weight", "init_cfg"),
}
_SWIN_COMMON: Rules = {
    "type": FREE,
    "depths": WHOLES,
    "num_heads": WHOLES,
    "window_size": WHOLE,
    "mlp_ratio": NUMBER,
    "patch_size": WHOLE,
    "out_indices": WHOLES,
    "qkv_bias": only(True, False),
    "qk_scale": only(None),
    "patch_norm": only(True),
    "pretrain_img_size": FREE,  # of the absolute position embedding, which is refused
    **free("drop_rate", "attn_drop_rate", "drop_path_rate", "frozen_stages"),
    **free("pretrained", "init_cfg"),
}
BACKBONES: dict[str, Rules] = {
    "SwinTransformer": {
        **_SWIN_COMMON,
        "embed_dims": WHOLE,
        "in_channels": only(3),
        "strides": WHOLES,
        "use_abs_pos_embed": only(False),
        "act_cfg": _GELU,
        "norm_cfg": _LAYER_NORM,
        "with_cp": FREE,
        "convert_weights": FREE,  # of the ImageNet weights that training begins with
    },
    "SwinTransformerV1": {
        **_SWIN_COMMON,
        "embed_dim": WHOLE,
        "in_chans": only(3),
        "ape": only(False),
        "use_checkpoint": FREE,
    },
    "ResNet": {
        "type": FREE,
        "depth": only(50, 101, 152, default=REQUIRED),
        "in_channels": only(3),
        "stem_channels": Is("whole number", optional=True),
        "base_channels": WHOLE,
        "num_stages": only(4),
        "strides": only((1, 2, 2, 2)),
        "dilations": only((1, 1, 1, 1)),
        "out_indices": WHOLES,
        "style": only("pytorch", "caffe"),
        "deep_stem": only(False),
        "avg_down": only(False),
        "conv_cfg": only(None),
        "norm_cfg": _BATCH_NORM,
        "dcn": only(None),
        "plugins": only(None),
        "stage_with_dcn": FREE,
        **free("frozen_stages", "norm_eval", "with_cp", "zero_init_residual"),
        **free("pretrained", "init_cfg"),
    },
}
_NECK: Rules = {
    "type": only("ChannelMapper", default=REQUIRED),
    "in_channels": WHOLES,
    "out_channels": WHOLE,
    "kernel_size": only(1, default=3),
    "num_outs": WHOLE,
    "conv_cfg": only(None),
    "norm_cfg": _GROUP_NORM,
    "act_cfg": only(None, default={"type": "ReLU"}),
    "bias": only("auto"),
    "init_cfg": FREE,
}
MODEL: Rules = {
    "type": only("CoDETR", default=REQUIRED),
    "backbone": FREE,  # by its type: BACKBONES
    "neck": _NECK,
    "query_head": _HEAD,
    "eval_module": only("detr"),
    "use_lsj": only(True, False),
    "with_attn_mask": only(True, False),
    "data_preprocessor": FREE,  # checked with the pixels
    "test_cfg": FREE,  # checked with the suppression
    # Auxiliary heads of training, mask heads of instance models: boxes need none of them.
    **free("rpn_head", "roi_head", "bbox_head", "mask_head", "mask_iou_head", "mask_roi_extractor"),
    **free("train_cfg", "with_pos_coord", "eval_index", "pretrained", "init_cfg"),
}
NMS: Rules = {
    "type": only("nms", "soft_nms"),
    "iou_threshold": FREE,
    "min_score": FREE,
    "class_agnostic": only(False, True),
    "method": only("linear"),
    "offset": only(0),
    "score_threshold": only(0),
    "max_num": only(-1),
    "split_thr": FREE,  # classes apart or shifted apart: the same boxes
    "sigma": FREE,  # of the Gaussian method
}
TEST: Rules = {"max_per_img": WHOLE, "score_thr": FREE, "nms": FREE}
