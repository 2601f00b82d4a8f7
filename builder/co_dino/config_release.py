"""Which of the two releases of Co-DINO a config belongs to, as their defaults differ.

The original release is Sense-X/Co-DETR (on mmdetection 2.25), the other one is mmdetection 3 with `projects/CO-DETR`.
Where the config does not say otherwise
* the original masks the padding of images (`with_attn_mask=True`), mmdetection does not (`use_lsj=True`, early
  `with_attn_mask=False`);
* the original runs NMS on as many candidates as there are queries, mmdetection on `max_per_img`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from builder.co_dino.config import VariantError
from builder.reading.settings import Config

Release = Literal["original", "mmdetection"]

# Settings that only one of the releases knows, by their path; `model` is the model dict.
_ORIGINAL = (
    "data.train",
    "data.val",
    "data.test",
    "model.pretrained",
    "model.mask_head",
    "model.query_head.with_box_refine",
    "model.query_head.mixed_selection",
    "model.query_head.lambda_1",
    "model.query_head.dn_cfg.type",
    "model.query_head.dn_cfg.noise_scale",
    "model.train_cfg.assigner.cls_cost",
)
_MMDETECTION = (
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "optim_wrapper",
    "default_scope",
    "model.data_preprocessor",
    "model.use_lsj",
    "model.query_head.dn_cfg.label_noise_scale",
    "model.query_head.dn_cfg.box_noise_scale",
    "model.train_cfg.assigner.match_costs",
)
_ORIGINAL_STEPS = ("Normalize", "MultiScaleFlipAug", "ImageToTensor", "DefaultFormatBundle", "Collect")
_MMDETECTION_STEPS = ("PackDetInputs",)


def release_of(config: Config, model: Config, pipeline: tuple[Config, ...]) -> Release:
    """Return the release that a config is of; mmdetection where nothing in it tells.

    Raises:
        VariantError: the config has settings that only one release knows and others that only the other does.
    """
    whole = {**config, "model": model}
    kinds = [step.get("type") for step in pipeline]
    if model.get("backbone", {}).get("type") == "SwinTransformerV1":
        kinds.append("SwinTransformerV1")
    original = [path for path in _ORIGINAL if _has(whole, path)]
    original += [kind for kind in kinds if kind in (*_ORIGINAL_STEPS, "SwinTransformerV1")]
    mmdetection = [path for path in _MMDETECTION if _has(whole, path)]
    mmdetection += [kind for kind in kinds if kind in _MMDETECTION_STEPS]
    if original and mmdetection:
        raise VariantError(
            f"the config has {original[0]} of the original release and {mmdetection[0]} of mmdetection's, which differ "
            "in their defaults; remove what the code that trained it does not know"
        )
    return "original" if original else "mmdetection"


def masks_padding(model: Config, release: Release) -> bool:
    """Return whether attention ignores the padding of an image.

    Raises:
        VariantError: `use_lsj` and `with_attn_mask` contradict each other.
    """
    lsj, masks = model.get("use_lsj"), model.get("with_attn_mask")
    if lsj is not None and masks is not None and lsj == masks:
        raise VariantError(f"use_lsj={lsj} and with_attn_mask={masks} contradict each other; state one of them")
    if masks is not None:
        return bool(masks)
    return release == "original" if lsj is None else not lsj


def plain(value: Any) -> Any:
    """Return a config of dicts and tuples, its types without a scope: `mmdet.CoDETR` is `CoDETR`."""
    if isinstance(value, Mapping):
        items = value.items()
        return {key: _unscoped(each) if key == "type" else plain(each) for key, each in items if key != "_scope_"}
    return tuple(plain(each) for each in value) if isinstance(value, (list, tuple)) else value


def _unscoped(kind: Any) -> Any:
    return kind.replace("::", ".").rsplit(".", 1)[-1] if isinstance(kind, str) else kind


def _has(config: Config, path: str) -> bool:
    value: Any = config
    for key in path.split("."):
        value = value[0] if isinstance(value, tuple) and value else value
        if not isinstance(value, Mapping) or value.get(key) is None:
            return False
        value = value[key]
    return True
