"""Reads a `DetrConfig` from settings: the network's, or the arguments of facebookresearch/detr's training program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from builder.detr.config import DetrConfig
from builder.family import VariantError
from builder.parts.resnet_config import DEPTHS, ResNetConfig
from serving.contract import PIXEL_MEAN, PIXEL_STD

Settings = Mapping[str, Any]

# Both kinds of settings have these, by the same names.
_TRANSFORMER = ("hidden_dim", "nheads", "enc_layers", "dec_layers", "dim_feedforward")
# Classes by the data set's name in the original's `models/detr.py`; any other has 20.
_CLASSES = {"coco": 91, "coco_panoptic": 250}
_OTHER_CLASSES = 20

_MODEL_KEYS = {
    *_TRANSFORMER,
    *("type", "width_scale", "backbone", "activation", "pre_norm", "layer_norm_eps", "num_queries", "num_classes"),
    *("num_logits", "position_embedding", "pixel_mean", "pixel_std"),
}
_BACKBONE_KEYS = {"type", "block", "stem_width", "planes", "expansion", "blocks", "stride_in", "dilation_c5", "bn_eps"}
# Those that decide the network, and those of training alone.
_ARGUMENTS = {
    *_TRANSFORMER,
    *("type", "backbone", "dilation", "position_embedding", "num_queries", "num_classes", "pre_norm", "masks"),
    *("dataset_file", "activation"),
    *("lr", "lr_backbone", "batch_size", "weight_decay", "epochs", "lr_drop", "clip_max_norm", "frozen_weights"),
    *("dropout", "aux_loss", "set_cost_class", "set_cost_bbox", "set_cost_giou", "mask_loss_coef", "dice_loss_coef"),
    *("bbox_loss_coef", "giou_loss_coef", "eos_coef", "coco_path", "coco_panoptic_path", "remove_difficult"),
    *("output_dir", "device", "seed", "resume", "start_epoch", "eval", "num_workers", "world_size", "dist_url"),
    *("distributed", "rank", "gpu", "dist_backend", "job_dir", "ngpus", "nodes", "timeout"),
}


def recognises(config: Settings) -> bool:
    """Return whether settings are of a DETR: their type says so, or without a type they have DETR's keys."""
    model = _model(config)
    kind = model.get("type")
    return set(_TRANSFORMER) <= set(model) if kind is None else str(kind).rpartition(".")[2] == "DETR"


def read_config(config: Settings, name: str) -> DetrConfig:
    """Return the network that settings describe.

    Args:
        config: those of the network, with a dict `backbone`, or the training arguments, with its name.
        name: the variant's.

    Raises:
        VariantError: a setting is missing, is unknown, or has a value that this network does not implement.
    """
    model = _model(config)
    if "bbox_head" in model:
        raise VariantError("this is mmdetection's config of DETR; expected the settings of facebookresearch/detr")
    from_arguments = isinstance(_get(model, "backbone"), str)
    _known(model, _ARGUMENTS if from_arguments else _MODEL_KEYS)
    _only(model, "pre_norm", False)
    _only(model, "masks", False, None)
    _only(model, "position_embedding", "sine", "v2")  # two names of one
    _only(model, "activation", "relu")
    _only(model, "layer_norm_eps", 1e-5)
    for key, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
        given = model.get(key)
        if given is not None and [round(255 * value, 3) for value in given] != list(values):
            raise VariantError(f"{key}={given} is not supported; expected {[round(v / 255, 3) for v in values]}")
    hidden_dim, nheads, enc_layers, dec_layers, dim_feedforward = (_count(model, key) for key in _TRANSFORMER)
    num_queries = _count(model, "num_queries")
    return DetrConfig(
        name,
        _named_backbone(model) if from_arguments else _backbone(model["backbone"]),
        num_queries,
        hidden_dim,
        nheads,
        dim_feedforward,
        enc_layers,
        dec_layers,
        num_classes=_classes(model),
        max_detections=num_queries,
    )


def _model(config: Settings) -> Settings:
    model = config.get("model", config)
    return model if isinstance(model, Mapping) else config


def _classes(model: Settings) -> int:
    """Return the number of classes without no object."""
    if model.get("num_classes") is None and "dataset_file" in model:
        return _CLASSES.get(model["dataset_file"], _OTHER_CLASSES)
    classes = _count(model, "num_classes")
    if model.get("num_logits", classes + 1) != classes + 1:
        raise VariantError(f"num_logits={model['num_logits']} with num_classes={classes}; expected {classes + 1}")
    return classes


def _named_backbone(model: Settings) -> ResNetConfig:
    """Return the backbone of training arguments, named as torchvision names it."""
    names = {f"resnet{depth}": depth for depth in DEPTHS}
    name = model["backbone"]
    if name not in names:
        raise VariantError(f"backbone={name!r} is not supported; expected {', '.join(names)}")
    return ResNetConfig(names[name], out_indices=(3,), dilated=_flag(model, "dilation"))


def _backbone(backbone: Settings) -> ResNetConfig:
    if not isinstance(backbone, Mapping):
        raise VariantError(f"backbone={backbone!r} is not supported; expected its settings, or a name as 'resnet50'")
    _known(backbone, _BACKBONE_KEYS, "backbone.")
    for key, values in (
        ("type", ("resnet",)),
        ("block", ("bottleneck",)),
        ("expansion", (4,)),
        ("stride_in", ("3x3",)),
        ("bn_eps", (1e-5,)),
    ):
        _only(backbone, key, *values, prefix="backbone.")
    planes, blocks = (_four(backbone, key) for key in ("planes", "blocks"))
    if planes != tuple(planes[0] * 2**i for i in range(4)):
        raise VariantError(f"backbone.planes={planes} is not supported; expected each twice the one before")
    depth = 3 * sum(blocks) + 2  # as ResNets are named: three convolutions a block, the first, and a classifier
    return ResNetConfig(
        depth,
        base_channels=planes[0],
        stem_channels=_count(backbone, "stem_width", "backbone."),
        out_indices=(3,),
        blocks=None if DEPTHS.get(depth) == blocks else blocks,
        dilated=_flag(backbone, "dilation_c5", "backbone."),
    )


def _known(settings: Settings, known: Iterable[str], prefix: str = "") -> None:
    unknown = sorted(str(key) for key in set(settings) - set(known))
    if unknown:
        raise VariantError(
            f"{', '.join(prefix + key for key in unknown)}: unknown to DETR; leave out what does not change the network"
        )


def _get(settings: Settings, key: str, prefix: str = "") -> Any:
    if settings.get(key) is None:
        raise VariantError(f"{prefix}{key} is missing")
    return settings[key]


def _count(settings: Settings, key: str, prefix: str = "") -> int:
    value = _get(settings, key, prefix)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise VariantError(f"{prefix}{key}={value!r}; expected a whole number of at least 1")
    return value


def _four(backbone: Settings, key: str) -> tuple[int, ...]:
    """Return a setting of the four stages."""
    values = _get(backbone, key, "backbone.")
    if not isinstance(values, (list, tuple)) or len(values) != 4 or not all(type(v) is int and v > 0 for v in values):
        raise VariantError(f"backbone.{key}={values!r}; expected four whole numbers of at least 1")
    return tuple(values)


def _flag(settings: Settings, key: str, prefix: str = "") -> bool:
    value = settings.get(key, False)
    if value not in (False, True):
        raise VariantError(f"{prefix}{key}={value!r}; expected true or false")
    return bool(value)


def _only(settings: Settings, key: str, *supported: Any, prefix: str = "") -> None:
    """Refuse a setting that is there and has none of the supported values."""
    if key in settings and settings[key] not in supported:
        raise VariantError(f"{prefix}{key}={settings[key]!r} is not supported; expected {supported[0]!r}")
