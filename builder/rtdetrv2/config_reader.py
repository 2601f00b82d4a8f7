"""Reads an `RTDETRv2Config` from a merged config of lyuwenyu/RT-DETR, refusing by name what is not implemented.

Names and defaults: `rtdetrv2_pytorch` (`PResNet`, `HybridEncoder`, `RTDETRTransformerv2`, `RTDETRPostProcessor`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.family import VariantError, tuples
from builder.reading.settings import FREE, NUMBER, REQUIRED, WHOLE, Config, Is, Rules, check, free, only, short
from builder.rtdetrv2.config import BLOCKS, HybridEncoderConfig, PResNetConfig, RTDETRv2Config

_WHOLES = Is("list of whole numbers", optional=True)
_ACTIVATIONS = ("relu", "silu", "swish", "gelu", "leaky_relu")
_BACKBONE: Rules = {
    "depth": only(18, 34, 50, 101, default=REQUIRED),
    "variant": only("d"),
    "num_stages": only(4),
    "return_idx": _WHOLES,
    "act": only(*_ACTIVATIONS),
    # Smaller or wider than upstream's: blocks and widths of each stage, channels of the stem.
    "blocks": _WHOLES,
    "widths": _WHOLES,
    "stem": WHOLE,
    "freeze_norm": only(True, False),
    **free("freeze_at", "pretrained"),
}
_ENCODER: Rules = {
    "in_channels": _WHOLES,
    "hidden_dim": WHOLE,
    "nhead": WHOLE,
    "dim_feedforward": WHOLE,
    "enc_act": only("gelu", "relu", "silu", "swish", "leaky_relu"),
    "use_encoder_idx": _WHOLES,
    "num_encoder_layers": FREE,  # 0 is possible: checked where it is read
    "pe_temperature": NUMBER,
    "expansion": NUMBER,
    "depth_mult": NUMBER,
    "act": only("silu", "swish", "relu", "gelu", "leaky_relu"),
    "version": only("v2"),
    **free("feat_strides", "dropout", "eval_spatial_size"),
}
_DECODER: Rules = {
    "feat_channels": _WHOLES,
    "hidden_dim": WHOLE,
    "num_queries": WHOLE,
    "num_levels": WHOLE,
    "num_points": FREE,  # a number, or one a level: checked where it is read
    "nhead": WHOLE,
    "num_layers": WHOLE,
    "dim_feedforward": WHOLE,
    "activation": only(*_ACTIVATIONS),
    "learn_query_content": only(False, True),
    "eval_idx": FREE,  # negative ones count from the end: checked where it is read
    "eps": only(1e-2),
    "cross_attn_method": only("default", "discrete"),
    "query_select_method": only("default", "one2many", "agnostic"),
    **free("feat_strides", "dropout", "num_denoising", "label_noise_ratio", "box_noise_scale", "aux_loss"),
    "eval_spatial_size": FREE,
}
_WHOLE: Rules = {
    "model": only("RTDETR"),
    "use_focal_loss": only(True),
    "num_classes": WHOLE,
    "num_top_queries": WHOLE,
    "eval_spatial_size": _WHOLES,
    "RTDETR": {
        "backbone": only("PResNet", default=REQUIRED),
        "encoder": only("HybridEncoder", default=REQUIRED),
        "decoder": only("RTDETRTransformerv2", default=REQUIRED),
        "multi_scale": FREE,
    },
    "RTDETRPostProcessor": {
        "num_top_queries": WHOLE,
        "use_focal_loss": only(True),
        **free("num_classes", "remap_mscoco_category"),
    },
    "PResNet": _BACKBONE,
    "HybridEncoder": _ENCODER,
    "RTDETRTransformerv2": _DECODER,
}
_STEPS = ("Resize", "ConvertPILImage", "ConvertBoxes")  # of the evaluation's pictures, whose pixels are ours


def recognises(config: Mapping[str, Any]) -> bool:
    """Return whether a config describes an RT-DETRv2."""
    return "RTDETRTransformerv2" in config or str(config.get("type", "")).lower() == RTDETRv2Config.family


def read_config(config: Mapping[str, Any], name: str = "custom") -> RTDETRv2Config:
    """Return the variant that a config describes.

    Args:
        config: upstream's YAML with everything it includes, merged. What is no part of the network or of how its
            pictures and candidates are made is not looked at.
        name: the variant's name.

    Raises:
        VariantError: a setting is missing, is unknown, or has a value that this network does not implement.
    """
    config = tuples(config)
    check({key: value for key, value in config.items() if key in _WHOLE}, _WHOLE)
    for key in ("PResNet", "HybridEncoder", "RTDETRTransformerv2"):
        if not isinstance(config.get(key), dict):
            raise VariantError(f"{key}={short(config.get(key))} is not supported; expected a dict of its settings")
    backbone, encoder = _backbone(config["PResNet"]), _encoder(config["HybridEncoder"])
    _expect("HybridEncoder", config["HybridEncoder"], "in_channels", (512, 1024, 2048), backbone.out_channels)
    decoder = config["RTDETRTransformerv2"]
    widths = (encoder.embed_dim,) * len(backbone.out_indices)
    _expect("RTDETRTransformerv2", decoder, "feat_channels", (512, 1024, 2048), widths)
    levels, trained = decoder.get("num_levels", 3), decoder.get("num_layers", 6)
    num_classes, num_queries = config.get("num_classes", 80), decoder.get("num_queries", 300)
    run = _evaluated_layers(decoder.get("eval_idx", -1), trained)
    return RTDETRv2Config(
        name,
        backbone,
        encoder,
        embed_dim=decoder.get("hidden_dim", 256),
        num_heads=decoder.get("nhead", 8),
        num_levels=levels,
        num_points=_points(decoder.get("num_points", 4), levels),
        feedforward_dim=decoder.get("dim_feedforward", 1024),
        decoder_layers=run,
        trained_layers=trained if trained > run else None,
        activation=_activation(decoder.get("activation", "relu")),
        num_queries=num_queries,
        sampling=decoder.get("cross_attn_method", "default"),
        selection=decoder.get("query_select_method", "default"),
        learned_queries=decoder.get("learn_query_content", False),
        num_classes=num_classes,
        max_detections=_candidates(config),
        input_size=_input_size(config),
    )


def _backbone(section: Config) -> PResNetConfig:
    indices = section.get("return_idx", (0, 1, 2, 3))
    depth = section["depth"]
    blocks, widths = section.get("blocks", BLOCKS[depth]), section.get("widths", (64, 128, 256, 512))
    for key, value in (("blocks", blocks), ("widths", widths)):
        if len(value) != 4 or not all(value):
            raise VariantError(f"PResNet.{key}={short(value)} is not possible; expected four positive whole numbers")
    if not indices or indices != tuple(range(indices[0], 4)):
        raise VariantError(
            f"PResNet.return_idx={short(indices)} is not supported; expected neighbouring stages up to the last, 3"
        )
    return PResNetConfig(
        depth,
        blocks,
        section.get("stem", 64),
        widths,
        indices,
        _activation(section.get("act", "relu")),
        section.get("freeze_norm", True),
    )


def _encoder(section: Config) -> HybridEncoderConfig:
    layers = section.get("num_encoder_layers", 1)
    if not isinstance(layers, int) or isinstance(layers, bool) or layers < 0:
        raise VariantError(f"HybridEncoder.num_encoder_layers={short(layers)} is not possible; expected 0 or more")
    return HybridEncoderConfig(
        embed_dim=section.get("hidden_dim", 256),
        num_heads=section.get("nhead", 8),
        feedforward_dim=section.get("dim_feedforward", 1024),
        num_layers=layers,
        attended=section.get("use_encoder_idx", (2,)),
        attention_activation=_activation(section.get("enc_act", "gelu")),
        temperature=float(section.get("pe_temperature", 10000)),
        expansion=float(section.get("expansion", 1.0)),
        num_rep_blocks=round(3 * section.get("depth_mult", 1.0)),
        activation=_activation(section.get("act", "silu")),
    )


def _activation(name: str) -> Any:
    return "silu" if name == "swish" else name


def _expect(where: str, section: Config, key: str, default: tuple[int, ...], needed: tuple[int, ...]) -> None:
    value = section.get(key, default)
    if value != needed:
        raise VariantError(f"{where}.{key}={short(value)} does not fit what comes before it; expected {needed}")


def _points(value: Any, levels: int) -> tuple[int, ...]:
    """Return the points of each level, of one number for all or a list."""
    points = value if isinstance(value, tuple) else (value,) * levels
    if len(points) != levels or not all(isinstance(each, int) and each > 0 for each in points):
        raise VariantError(
            f"RTDETRTransformerv2.num_points={short(value)} is not possible; expected a positive whole number, or one "
            f"for each of num_levels={levels}"
        )
    return points


def _evaluated_layers(index: Any, layers: int) -> int:
    """Return how many decoder layers run: up to the one whose answer is taken."""
    if not isinstance(index, int) or isinstance(index, bool) or not -layers <= index < layers:
        raise VariantError(
            f"RTDETRTransformerv2.eval_idx={short(index)} is not possible; expected {-layers} to {layers - 1}"
        )
    return index % layers + 1


def _candidates(config: Config) -> int:
    return config.get("RTDETRPostProcessor", {}).get("num_top_queries", config.get("num_top_queries", 300))


def _input_size(config: Config) -> tuple[int, int]:
    """Return the (height, width) in pixels that evaluation stretches its pictures to."""
    stated, resized = config.get("eval_spatial_size"), _resized(config)
    height, width = _size("eval_spatial_size", stated or resized or (640, 640))
    if resized is not None and _size("val_dataloader's Resize.size", resized) != (height, width):
        raise VariantError(
            f"eval_spatial_size={short(stated)} differs from val_dataloader's Resize.size={short(resized)}; give one"
        )
    return height, width


def _size(where: str, value: Any) -> tuple[int, int]:
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, int) and each > 0 for each in value):
        return value[0], value[1]
    raise VariantError(f"{where}={short(value)} is not possible; expected height and width in pixels")


def _resized(config: Config) -> Any:
    """Return the size in the evaluation's transforms, or None; refuses those that this network does not make."""
    path, size = "val_dataloader.dataset.transforms.ops", None
    section: Any = config
    for key in path.split("."):
        section = section.get(key) if isinstance(section, dict) else None
    for step in section or ():
        if not isinstance(step, dict) or step.get("type") not in _STEPS or step.get("scale") is False:
            raise VariantError(f"{path} has {short(step)}; expected {', '.join(_STEPS)}, pixels from 0 to 1")
        if step["type"] == "Resize":
            size = step.get("size")
    return size
