"""Which settings of an mmdetection config this network implements: a rule for every key of every dict it reads.

Names and defaults: mmdetection 2.25 and 3.3 with mmcv (`ResNet`, `SwinTransformer`, `ChannelMapper`, the transformer
layers), Sense-X/Co-DETR `projects/models`, and mmdetection `projects/CO-DETR/codetr`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from builder.co_dino.config import VariantError

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Only:
    """A setting with a choice of values; `default` is upstream's, by default the first value."""

    values: tuple[Any, ...]
    default: Any


@dataclass(frozen=True)
class Is:
    """A setting that is read: one whole number, one number, or several whole numbers."""

    kind: Literal["whole number", "number", "list of whole numbers"]
    optional: bool = False

    def accepts(self, value: object) -> bool:
        """Whether `value` is of this kind and positive, or None where that stands for upstream's default."""
        if value is None:
            return self.optional
        if self.kind == "list of whole numbers":
            return isinstance(value, tuple) and all(_is_whole(each) and each >= 0 for each in value)
        if self.kind == "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        return _is_whole(value) and value > 0


class Free:
    """A setting that decides nothing at inference, or that is read elsewhere and checked there."""


Rules = Mapping[str, "Only | Is | Free | Rules"]
REQUIRED = object()  # as `default`: upstream has none


def only(*values: Any, default: Any = None) -> Only:
    """Return the rule for one of `values`; a `default` of None means the first of them."""
    return Only(values, values[0] if default is None else default)


def check(section: object, rules: Rules, path: str = "") -> None:
    """Check every setting of a dict, and of the dicts within it.

    Raises:
        VariantError: a setting is unknown, or has a value that this network does not implement.
    """
    if not isinstance(section, Mapping):
        raise VariantError(f"{path.rstrip('.') or 'model'}={short(section)} is not supported; expected a dict")
    for key, value in section.items():
        if key not in rules:
            raise VariantError(
                f"{path}{key}={short(value)} is a setting this reader does not know; remove it if it matters in "
                "training only, else this network does not implement it"
            )
    for key, rule in rules.items():
        _check_one(section, key, rule, path + key)


def _check_one(section: Config, key: str, rule: Only | Is | Free | Rules, path: str) -> None:
    if isinstance(rule, Only):
        value = section.get(key, rule.default)
        if value is REQUIRED:
            raise VariantError(f"the config has no {path!r}; expected {_choices(rule)}")
        if not any(_same(value, choice) for choice in rule.values):
            said = "" if key in section else " (the default of mmdetection)"
            raise VariantError(f"{path}={short(value)}{said} is not supported; expected {_choices(rule)}")
    elif isinstance(rule, Is):
        if key in section and not rule.accepts(section[key]):
            raise VariantError(f"{path}={short(section[key])} is not possible; expected a positive {rule.kind}")
    elif isinstance(rule, Mapping) and key in section:
        # mmcv takes one dict for each feed-forward network of a layer.
        check(single(section[key]) if key == "ffn_cfgs" else section[key], rule, path + ".")


def single(value: Any) -> Any:
    """Return the only element of a list, or `value` itself: mmdetection accepts both for many dicts."""
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def short(value: object) -> str:
    """Return how a value reads in a message of one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _choices(rule: Only) -> str:
    return " or ".join(repr(choice) for choice in rule.values)


def _same(value: object, choice: object) -> bool:
    """Whether two settings are equal; True is not 1 here, but 2.0 is 2."""
    return isinstance(value, bool) == isinstance(choice, bool) and value == choice


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def free(*keys: str) -> Rules:
    """Return the rules of settings that decide nothing here."""
    return dict.fromkeys(keys, FREE)


FREE = Free()
WHOLE, NUMBER, WHOLES = Is("whole number"), Is("number"), Is("list of whole numbers")

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
