"""Reads a `Variant` from a Co-DINO config, refusing in one line what this network does not implement.

Configs of both releases are read: of Sense-X/Co-DETR (the original) and of mmdetection's `projects/CO-DETR`; see
`config_release` for the defaults in which they differ. Every key of the model is known to `config_rules`.

K, the variant's `max_detections`, is the number of candidates that go into NMS, and the server answers all that NMS
leaves of them. mmdetection takes the `max_per_img` best candidates, so that K is `max_per_img`. The original takes as
many as there are queries and cuts to `max_per_img` after NMS; there K is the number of queries, and the first
`max_per_img` rows of an answer are the original's.
"""

from __future__ import annotations

from typing import Any

from builder.co_dino.config import ResNetConfig, SwinConfig, Variant, VariantError
from builder.co_dino.config_classes import class_names
from builder.co_dino.config_pixels import read_pixels, test_pipeline
from builder.co_dino.config_release import Release, masks_padding, plain, release_of
from builder.co_dino.config_rules import BACKBONES, MODEL, NMS, SAMPLING, SELF_ATTENTION, TEST
from builder.reading.settings import Config, check, short, single
from serving.errors import CodetrError
from serving.rules import Rules, Suppression

# Losses whose scores are sigmoids unless told otherwise.
_SIGMOID_LOSSES = ("QualityFocalLoss", "FocalLoss", "VarifocalLoss")
_DEFAULT_POSITION: Config = {"type": "SinePositionalEncoding", "num_feats": 128, "normalize": True}
_HEAD = "query_head."
_TRANSFORMER = "query_head.transformer."
# mmcv's `iou_threshold` of soft NMS, and its least score.
_SOFT_IOU, _SOFT_MIN_SCORE = 0.3, 1e-3


def from_mmdet_config(config: Config, name: str = "custom") -> Variant:
    """Return the variant that a config describes.

    Args:
        config: the model dict (`type="CoDETR"`) or a whole config that holds one under `model`. Class names, image
            size and padding are read from a whole config; they are no part of the model.
        name: the variant's name.

    Raises:
        VariantError: a setting is missing, is unknown, or has a value that this network does not implement.
    """
    config = plain(config)
    if not isinstance(config, dict):
        raise VariantError(f"expected a config's dict, got {short(config)}")
    model = config.get("model", config)
    _check_kind(model)
    check(model, MODEL)
    steps = test_pipeline(config)
    release = release_of(config, model, steps)
    pixels = read_pixels(steps, config, model, release, masks_padding(model, release))
    head = _get(model, "query_head")
    num_queries = head.get("num_query", 900)
    suppression, max_detections = _test_settings(model, num_queries, release)
    return Variant(
        name,
        _backbone(model),
        "DETR" if pixels.masked else "LSJ",
        num_classes=_get(head, "num_classes", "query_head."),
        num_queries=num_queries,
        max_detections=max_detections,
        input_size=pixels.input_size,
        class_names=class_names(config),
        rules=Rules(suppression=suppression),
        lsj_padding=pixels.padding,
        **_transformer(model, head, num_queries),
    )


def _check_kind(model: Config) -> None:
    """Check first what the network is at all, so that other networks are called by their names."""
    if not isinstance(model, dict) or model.get("type") != "CoDETR":
        kind = model.get("type") if isinstance(model, dict) else model
        raise VariantError(f"type={short(kind)} is not supported; expected 'CoDETR'")
    head, backbone = (_get(model, key) for key in ("query_head", "backbone"))
    kind = head.get("type") if isinstance(head, dict) else head
    if kind == "CoDeformDETRHead":
        raise VariantError(f"query_head.type={kind!r} is Co-Deformable-DETR, which is not supported; expected Co-DINO")
    kind = backbone.get("type") if isinstance(backbone, dict) else backbone
    if not isinstance(kind, str) or kind not in BACKBONES:
        raise VariantError(f"backbone.type={short(kind)} is not supported; expected {' or '.join(BACKBONES)}")
    check(backbone, BACKBONES[kind], "backbone.")


def _transformer(model: Config, head: Config, num_queries: int) -> dict[str, Any]:
    """Return the variant's settings of neck, encoder and decoder."""
    neck, transformer = _get(model, "neck"), _get(head, "transformer", _HEAD)
    encoder, decoder = (_get(transformer, part, _TRANSFORMER) for part in ("encoder", "decoder"))
    layers = [_get(stack, "transformerlayers", _TRANSFORMER) for stack in (encoder, decoder)]
    encoder_attention, self_attention, cross_attention = _attentions(*layers)
    position = head.get("positional_encoding", _DEFAULT_POSITION)
    num_levels = neck.get("num_outs") or len(_get(neck, "in_channels", "neck."))
    num_proposals = transformer.get("two_stage_num_proposals", num_queries)
    heads, levels, points = sampling = _sampling(encoder_attention)
    width = _feedforward(layers[0])
    _agree("num_heads, num_levels, num_points (encoder, decoder)", sampling, _sampling(cross_attention))
    _agree("levels (neck, transformer.num_feature_levels)", num_levels, transformer.get("num_feature_levels", 4))
    _agree("levels (neck, attention)", num_levels, levels)
    _agree("feedforward_channels (encoder, decoder)", width, _feedforward(layers[1]))
    _agree("queries (num_query, transformer.two_stage_num_proposals)", num_queries, num_proposals)
    embed_dim = _embed_dim(neck, head, position, (encoder_attention, self_attention, cross_attention), layers)
    _check_sigmoid(head)
    return {
        "embed_dim": embed_dim,
        "num_heads": heads,
        "num_self_heads": _get(self_attention, "num_heads", "self attention: "),
        "num_levels": num_levels,
        "num_groups": _get(_get(neck, "norm_cfg", "neck."), "num_groups", "neck.norm_cfg."),
        "num_points": points,
        "feedforward_dim": width,
        "encoder_layers": _get(encoder, "num_layers", f"{_TRANSFORMER}encoder."),
        "decoder_layers": _get(decoder, "num_layers", f"{_TRANSFORMER}decoder."),
        "position_temperature": position.get("temperature", 10000),
    }


def _embed_dim(
    neck: Config, head: Config, position: Config, attentions: tuple[Config, ...], layers: list[Config]
) -> int:
    """Return the width of tokens and queries, which a config states again and again."""
    embed_dim: int = _get(neck, "out_channels", "neck.")
    for part, attention in zip(("encoder", "self", "cross"), attentions, strict=True):
        _agree(f"embed_dims (neck, {part} attention)", embed_dim, attention.get("embed_dims", 256))
    _agree("embed_dims (neck, 2 * positional_encoding.num_feats)", embed_dim, 2 * _get(position, "num_feats"))
    _agree("embed_dims (neck, query_head)", embed_dim, head.get("embed_dims", embed_dim))
    for layer in layers:
        _agree("embed_dims (neck, ffn_cfgs)", embed_dim, _ffn(layer).get("embed_dims", embed_dim))
    return embed_dim


def _attentions(encoder: Config, decoder: Config) -> tuple[Config, Config, Config]:
    """Return the attention of the encoder, and the decoder's self- and cross-attention."""
    of_encoder = single(_get(encoder, "attn_cfgs", f"{_TRANSFORMER}encoder.transformerlayers."))
    path = f"{_TRANSFORMER}decoder.transformerlayers.attn_cfgs"
    of_decoder = decoder.get("attn_cfgs")
    if not isinstance(of_decoder, tuple) or len(of_decoder) != 2:
        raise VariantError(f"{path}={short(of_decoder)} is not supported; expected self- and cross-attention")
    check(of_encoder, SAMPLING, f"{_TRANSFORMER}encoder.transformerlayers.attn_cfgs.")
    check(of_decoder[0], SELF_ATTENTION, f"{path}[0].")
    check(of_decoder[1], SAMPLING, f"{path}[1].")
    return of_encoder, of_decoder[0], of_decoder[1]


def _sampling(attention: Config) -> tuple[int, int, int]:
    """Return heads, levels and points of a deformable attention, with mmcv's defaults."""
    return attention.get("num_heads", 8), attention.get("num_levels", 4), attention.get("num_points", 4)


def _ffn(layer: Config) -> Config:
    ffn: Config = single(layer.get("ffn_cfgs", {}))
    return ffn


def _feedforward(layer: Config) -> int:
    """Return the hidden width, which configs state in the layer or in its `ffn_cfgs` (mmcv's default is 1024)."""
    return int(layer.get("feedforward_channels", _ffn(layer).get("feedforward_channels", 1024)))


def _check_sigmoid(head: Config) -> None:
    """Scores are sigmoids if the classification loss takes them so; DETR's own loss does not."""
    loss = head.get("loss_cls", {"type": "CrossEntropyLoss"})
    if not loss.get("use_sigmoid", loss.get("type") in _SIGMOID_LOSSES):
        raise VariantError(
            f"query_head.loss_cls={short(loss)} gives softmax scores, which are not supported; expected "
            "use_sigmoid=True"
        )


def _backbone(model: Config) -> SwinConfig | ResNetConfig:
    backbone = model["backbone"]
    config = _resnet(backbone) if backbone["type"] == "ResNet" else _swin(backbone)
    _agree("channels (backbone, neck.in_channels)", config.out_channels, _get(model["neck"], "in_channels", "neck."))
    return config


def _swin(backbone: Config) -> SwinConfig:
    depths, patch_size = backbone.get("depths", (2, 2, 6, 2)), backbone.get("patch_size", 4)
    num_heads = backbone.get("num_heads", (3, 6, 12, 24))
    strides = (patch_size, *[2] * (len(depths) - 1))
    if backbone["type"] == "SwinTransformer":
        _agree("backbone.strides (stated; patch_size, then 2)", backbone.get("strides", (4, 2, 2, 2)), strides)
    _agree("stages of the backbone (depths, num_heads)", len(depths), len(num_heads))
    return SwinConfig(
        embed_dim=backbone.get("embed_dims", backbone.get("embed_dim", 96)),
        depths=depths,
        num_heads=num_heads,
        window_size=backbone.get("window_size", 7),
        mlp_ratio=backbone.get("mlp_ratio", 4),
        patch_size=patch_size,
        qkv_bias=backbone.get("qkv_bias", True),
        out_indices=_out_indices(backbone, len(depths)),
    )


def _resnet(backbone: Config) -> ResNetConfig:
    base_channels = backbone.get("base_channels", 64)
    return ResNetConfig(
        depth=backbone["depth"],
        base_channels=base_channels,
        stem_channels=backbone.get("stem_channels") or base_channels,
        style=backbone.get("style", "pytorch"),
        out_indices=_out_indices(backbone, 4),
    )


def _out_indices(backbone: Config, stages: int) -> tuple[int, ...]:
    indices: tuple[int, ...] = backbone.get("out_indices", (0, 1, 2, 3))
    if sorted(set(indices)) != list(indices) or not indices or indices[-1] >= stages:
        raise VariantError(f"backbone.out_indices={indices} is not possible; expected rising stages below {stages}")
    return indices


def _test_settings(model: Config, num_queries: int, release: Release) -> tuple[Suppression, int]:
    """Return the suppression of `test_cfg[0]` and K."""
    stages = _get(model, "test_cfg")
    test = stages[0] if isinstance(stages, tuple) and stages else stages
    check(test, TEST, "test_cfg[0].")
    max_per_img = test.get("max_per_img", num_queries)
    nms = test.get("nms")
    if nms is not None:
        check(nms, NMS, "test_cfg[0].nms.")
    candidates = num_queries if nms is not None and release == "original" else max_per_img
    return _suppression(nms, test.get("score_thr", 0.0)), candidates


def _suppression(nms: Config | None, score_threshold: float) -> Suppression:
    try:
        if nms is None:
            return Suppression("none", score_threshold=_number(score_threshold))
        soft = nms.get("type") == "soft_nms"
        iou = nms.get("iou_threshold", _SOFT_IOU) if soft else _get(nms, "iou_threshold", "test_cfg[0].nms.")
        return Suppression(
            "soft" if soft else "hard",
            _number(iou),
            _number(nms.get("min_score", _SOFT_MIN_SCORE)),
            _number(score_threshold),
            nms.get("class_agnostic", False),
        )
    except (CodetrError, TypeError) as error:
        raise VariantError(f"test_cfg[0]: {error}") from error


def _number(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise CodetrError(f"expected a number in 0..1, got {short(value)}")
    return float(value)


def _agree(what: str, first: object, second: object) -> None:
    if first != second:
        raise VariantError(f"{what} must agree, got {first!r} and {second!r}")


def _get(config: Any, key: str, path: str = "") -> Any:
    if not isinstance(config, dict) or config.get(key) is None:
        raise VariantError(f"the config has no {path}{key}; add it as the training had it")
    return config[key]
