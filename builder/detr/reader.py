"""Reads a `DetrConfig` from settings: the network's, or the arguments of facebookresearch/detr's training program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.detr.config import DetrConfig
from builder.family import VariantError, tuples
from builder.parts.resnet_config import DEPTHS, ResNetConfig
from builder.reading.settings import FREE, WHOLE, WHOLES, Config, Rules, check, free, only, short

# Both kinds of settings have these, by the same names.
_TRANSFORMER = ("hidden_dim", "nheads", "enc_layers", "dec_layers", "dim_feedforward")
_BOTH: Rules = {
    **dict.fromkeys((*_TRANSFORMER, "num_queries", "num_classes"), WHOLE),
    "type": FREE,
    "pre_norm": only(False),
    "position_embedding": only("sine", "v2"),  # two names of one
    "activation": only("relu"),
}
MODEL: Rules = {
    **_BOTH,
    "backbone": {
        "type": only("resnet"),
        "block": only("bottleneck"),
        "stem_width": WHOLE,
        "planes": WHOLES,
        "expansion": only(4),
        "blocks": WHOLES,
        "stride_in": only("3x3"),
        "dilation_c5": FREE,
        "bn_eps": only(1e-5),
    },
    "width_scale": FREE,
    "layer_norm_eps": only(1e-5),
    "num_logits": WHOLE,
    "pixel_mean": only((0.485, 0.456, 0.406)),
    "pixel_std": only((0.229, 0.224, 0.225)),
}
ARGUMENTS: Rules = {
    **_BOTH,
    "num_classes": FREE,  # None where the data set decides
    "backbone": only(*(f"resnet{depth}" for depth in DEPTHS)),
    "masks": only(False),
    "dilation": FREE,
    "dataset_file": FREE,
    # Of training alone.
    **free("lr", "lr_backbone", "batch_size", "weight_decay", "epochs", "lr_drop", "clip_max_norm", "frozen_weights"),
    **free("dropout", "aux_loss", "set_cost_class", "set_cost_bbox", "set_cost_giou", "mask_loss_coef"),
    **free("dice_loss_coef", "bbox_loss_coef", "giou_loss_coef", "eos_coef", "coco_path", "coco_panoptic_path"),
    **free("remove_difficult", "output_dir", "device", "seed", "resume", "start_epoch", "eval", "num_workers"),
    **free("world_size", "dist_url", "distributed", "rank", "gpu", "dist_backend"),
    **free("ngpus", "nodes", "timeout", "job_dir"),  # of its launcher for clusters
}
# Classes by the data set's name in the original's `models/detr.py`; any other has 20.
_CLASSES = {"coco": 91, "coco_panoptic": 250}
_OTHER_CLASSES = 20


def recognises(config: Config) -> bool:
    """Return whether settings are of a DETR: their type says so, or without a type they have DETR's keys."""
    model = _model(config)
    kind = model.get("type")
    return set(_TRANSFORMER) <= set(model) if kind is None else str(kind).rpartition(".")[2] == "DETR"


def read_config(config: Config, name: str) -> DetrConfig:
    """Return the network that settings describe.

    Args:
        config: those of the network, with a dict `backbone`, or the training arguments, with its name.
        name: the variant's.

    Raises:
        VariantError: a setting is missing, is unknown, or has a value that this network does not implement.
    """
    model = tuples(_model(config))
    if "bbox_head" in model:
        raise VariantError("this is mmdetection's config of DETR; expected the settings of facebookresearch/detr")
    named = isinstance(_get(model, "backbone"), str)
    check(model, ARGUMENTS if named else MODEL)
    embed_dim, num_heads, encoder_layers, decoder_layers, feedforward_dim = (_get(model, key) for key in _TRANSFORMER)
    return DetrConfig(
        name,
        _named_backbone(model) if named else _backbone(model["backbone"]),
        _get(model, "num_queries"),
        embed_dim,
        num_heads,
        feedforward_dim,
        encoder_layers,
        decoder_layers,
        num_classes=_classes(model),
        max_detections=model["num_queries"],
    )


def _model(config: Config) -> Config:
    model = config.get("model", config)
    return model if isinstance(model, Mapping) else config


def _get(settings: Config, key: str, path: str = "") -> Any:
    if settings.get(key) is None:
        raise VariantError(f"the config has no {path + key!r}")
    return settings[key]


def _classes(model: Config) -> int:
    """Return the number of classes without no object."""
    classes = model.get("num_classes")
    if classes is None and "dataset_file" in model:
        return _CLASSES.get(model["dataset_file"], _OTHER_CLASSES)
    classes = int(_get(model, "num_classes"))
    if model.get("num_logits", classes + 1) != classes + 1:
        raise VariantError(f"num_logits={model['num_logits']} with num_classes={classes}; expected {classes + 1}")
    return classes


def _named_backbone(model: Config) -> ResNetConfig:
    """Return the backbone of training arguments, named as torchvision names it."""
    depth = int(model["backbone"].removeprefix("resnet"))
    return ResNetConfig(depth, out_indices=(3,), dilated=_flag(model, "dilation"))


def _backbone(backbone: Config) -> ResNetConfig:
    planes, blocks = (_get(backbone, key, "backbone.") for key in ("planes", "blocks"))
    if len(planes) != 4 or planes != tuple(planes[0] * 2**i for i in range(4)):
        raise VariantError(f"backbone.planes={planes} is not supported; expected four, each twice the one before")
    if len(blocks) != 4 or 0 in blocks:
        raise VariantError(f"backbone.blocks={blocks} is not supported; expected four, each at least 1")
    depth = 3 * sum(blocks) + 2  # as ResNets are named: three convolutions a block, the first, and a classifier
    return ResNetConfig(
        depth,
        base_channels=planes[0],
        stem_channels=_get(backbone, "stem_width", "backbone."),
        out_indices=(3,),
        blocks=None if DEPTHS.get(depth) == blocks else blocks,
        dilated=_flag(backbone, "dilation_c5", "backbone."),
    )


def _flag(settings: Config, key: str, path: str = "") -> bool:
    """Return a setting that is true or false, or 1 or 0; false if it is not there."""
    value = settings.get(key, False)
    if value not in (False, True):
        raise VariantError(f"{path}{key}={short(value)} is not supported; expected True or False")
    return bool(value)
