"""Reads a `Variant` from an mmdetection model config, refusing what this network does not implement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from builder.co_dino.config import ResNetConfig, SwinConfig, Variant, VariantError
from serving.contract import PIXEL_MEAN, PIXEL_STD

Config = Mapping[str, Any]

# (path, mmdetection's default, the values this network implements).
_LAYERS = "query_head.transformer.{}.transformerlayers.operation_order"
_COMMON = (
    ("type", None, ("CoDETR",)),
    ("eval_module", "detr", ("detr",)),
    ("neck.type", None, ("ChannelMapper",)),
    ("neck.kernel_size", 3, (1,)),
    ("neck.act_cfg", {"type": "ReLU"}, (None,)),
    ("neck.norm_cfg.type", None, ("GN",)),
    ("query_head.as_two_stage", False, (True,)),
    ("query_head.transformer.type", None, ("CoDinoTransformer",)),
    (_LAYERS.format("encoder"), None, (("self_attn", "norm", "ffn", "norm"),)),
    (_LAYERS.format("decoder"), None, (("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"),)),
    ("query_head.positional_encoding.normalize", False, (True,)),
    ("query_head.positional_encoding.scale", 2 * math.pi, (2 * math.pi,)),
    ("query_head.positional_encoding.eps", 1e-6, (1e-6,)),
    ("query_head.positional_encoding.offset", 0.0, (0.0,)),
)
_SWIN = (
    ("backbone.patch_norm", True, (True,)),
    ("backbone.use_abs_pos_embed", False, (False,)),
    ("backbone.qk_scale", None, (None,)),
)
_RESNET = (
    ("backbone.depth", None, (50, 101, 152)),
    ("backbone.num_stages", 4, (4,)),
    ("backbone.strides", (1, 2, 2, 2), ((1, 2, 2, 2),)),
    ("backbone.dilations", (1, 1, 1, 1), ((1, 1, 1, 1),)),
    ("backbone.deep_stem", False, (False,)),
    ("backbone.avg_down", False, (False,)),
    ("backbone.dcn", None, (None,)),
    ("backbone.plugins", None, (None,)),
)


def from_mmdet_config(config: Config, name: str = "custom") -> Variant:
    """Return the variant that an mmdetection config describes.

    Args:
        config: the model dict (`type="CoDETR"`) or a whole config that holds one under `model`; class names are
            read from its `metainfo` where it has one.
        name: the variant's name.

    Raises:
        VariantError: a setting is missing or is one that this network does not implement.
    """
    model = config.get("model", config)
    _refuse_unsupported(model, _COMMON)
    head = _get(model, "query_head")
    transformer = _get(model, "query_head.transformer")
    encoder_layer = _get(transformer, "encoder.transformerlayers")
    decoder_layer = _get(transformer, "decoder.transformerlayers")
    self_attn, cross_attn = _get(decoder_layer, "attn_cfgs")
    embed_dim = _get(model, "neck.out_channels")
    _check_pixels(model.get("data_preprocessor") or {})
    encoder_attn = _single(_get(encoder_layer, "attn_cfgs"))
    sampling = _sampling(encoder_attn, "encoder")
    _agree("deformable attention (heads, levels, points)", sampling, _sampling(cross_attn, "decoder"))
    _agree("levels (neck, transformer)", _get(model, "neck.num_outs"), transformer.get("num_feature_levels", 4))
    _agree("levels (neck, attention)", _get(model, "neck.num_outs"), sampling[1])
    for part, attention in (("encoder", encoder_attn), ("self", self_attn), ("cross", cross_attn)):
        _agree(f"embed_dims (neck, {part} attention)", embed_dim, attention.get("embed_dims", 256))
    _agree("embed_dims (neck, 2*num_feats)", embed_dim, 2 * _get(head, "positional_encoding.num_feats"))
    _agree("feedforward_channels", _feedforward(encoder_layer, "encoder"), _feedforward(decoder_layer, "decoder"))
    test_cfg = _single(model.get("test_cfg") or {})
    num_queries = head.get("num_query", 900)
    return Variant(
        name,
        _backbone(model),
        "LSJ" if model.get("use_lsj", True) else "DETR",
        num_classes=_get(head, "num_classes"),
        num_queries=num_queries,
        max_detections=test_cfg.get("max_per_img", num_queries),
        embed_dim=embed_dim,
        num_heads=sampling[0],
        num_self_heads=_get(self_attn, "num_heads"),
        num_levels=sampling[1],
        num_groups=_get(model, "neck.norm_cfg.num_groups"),
        num_points=sampling[2],
        feedforward_dim=_feedforward(encoder_layer, "encoder"),
        encoder_layers=_get(transformer, "encoder.num_layers"),
        decoder_layers=_get(transformer, "decoder.num_layers"),
        position_temperature=_get(head, "positional_encoding").get("temperature", 10000),
        class_names=_class_names(config),
    )


def _backbone(model: Config) -> SwinConfig | ResNetConfig:
    backbone = _get(model, "backbone")
    out_indices = tuple(backbone.get("out_indices", (0, 1, 2, 3)))
    config: SwinConfig | ResNetConfig
    if backbone.get("type") == "SwinTransformer":
        _refuse_unsupported(model, _SWIN)
        depths, patch_size = tuple(backbone.get("depths", (2, 2, 6, 2))), backbone.get("patch_size", 4)
        strides = tuple(backbone.get("strides", (4, 2, 2, 2)))
        _agree("strides (backbone; patch_size, then 2)", strides, (patch_size, *[2] * (len(depths) - 1)))
        config = SwinConfig(
            embed_dim=backbone.get("embed_dims", 96),
            depths=depths,
            num_heads=tuple(backbone.get("num_heads", (3, 6, 12, 24))),
            window_size=backbone.get("window_size", 7),
            mlp_ratio=backbone.get("mlp_ratio", 4),
            patch_size=patch_size,
            qkv_bias=backbone.get("qkv_bias", True),
            out_indices=out_indices,
        )
    elif backbone.get("type") == "ResNet":
        _refuse_unsupported(model, _RESNET)
        base_channels = backbone.get("base_channels", 64)
        config = ResNetConfig(
            depth=backbone["depth"],
            base_channels=base_channels,
            stem_channels=backbone.get("stem_channels") or base_channels,
            style=backbone.get("style", "pytorch"),
            out_indices=out_indices,
        )
    else:
        raise VariantError(f"backbone.type={backbone.get('type')!r} is not supported; use SwinTransformer or ResNet")
    _agree("channels (backbone, neck.in_channels)", config.out_channels, tuple(_get(model, "neck.in_channels")))
    return config


def _sampling(attention: Config, part: str) -> tuple[int, int, int]:
    """Return heads, levels and points of a deformable attention, with mmcv's defaults."""
    if attention.get("type") != "MultiScaleDeformableAttention":
        raise VariantError(f"{part} attention {attention.get('type')!r} is not MultiScaleDeformableAttention")
    return attention.get("num_heads", 8), attention.get("num_levels", 4), attention.get("num_points", 4)


def _feedforward(layer: Config, part: str) -> int:
    """Return the hidden width, which configs state in the layer or in its `ffn_cfgs` (mmcv's default is 1024)."""
    ffn = _single(layer.get("ffn_cfgs") or {})
    if ffn.get("num_fcs", 2) != 2 or ffn.get("act_cfg", {"type": "ReLU"}).get("type") != "ReLU":
        raise VariantError(f"{part} ffn_cfgs={dict(ffn)} is not supported; expected two layers with ReLU")
    return int(layer.get("feedforward_channels", ffn.get("feedforward_channels", 1024)))


def _class_names(config: Config) -> tuple[str, ...] | None:
    meta = config.get("metainfo") or {}
    names = meta.get("classes", meta.get("CLASSES"))
    return None if names is None else tuple(names)


def _check_pixels(preprocessor: Config) -> None:
    for key, expected in (("mean", PIXEL_MEAN), ("std", PIXEL_STD)):
        _agree(f"data_preprocessor.{key}", tuple(preprocessor.get(key, expected)), expected)


def _refuse_unsupported(model: Config, rules: tuple[tuple[str, Any, tuple[Any, ...]], ...]) -> None:
    for path, default, supported in rules:
        *parents, key = path.split(".")
        value = _plain(_get(model, ".".join(parents)).get(key, default) if parents else model.get(key, default))
        if value not in supported:
            expected = " or ".join(repr(choice) for choice in supported)
            raise VariantError(f"{path}={value!r} is not supported; expected {expected}")


def _agree(what: str, first: object, second: object) -> None:
    if first != second:
        raise VariantError(f"{what} must agree, got {first!r} and {second!r}")


def _get(config: Config, path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise VariantError(f"the config has no {path!r} (missing {key!r})")
        value = value[key]
    return value


def _single(value: Any) -> Config:
    """Return the first of a list of dicts, or the dict itself: mmdetection accepts both."""
    first = value[0] if isinstance(value, Sequence) else value
    if not isinstance(first, Mapping):
        raise VariantError(f"expected a dict in the config, got {first!r}")
    return first


def _plain(value: Any) -> Any:
    """Return lists as tuples, so that a JSON config compares equal to a Python one."""
    if isinstance(value, Mapping):
        return dict(value)
    return tuple(value) if isinstance(value, list) else value
