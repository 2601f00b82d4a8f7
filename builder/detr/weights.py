"""The names of DETR's weights in checkpoints, and what a checkpoint of something else most likely is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.detr.config import PRESETS, DetrConfig
from builder.parts.checkpoints import count, first_difference, renamed_once, rows
from builder.parts.resnet_config import DEPTHS

if TYPE_CHECKING:
    from torch import Tensor

# The original's names as ours.
_LAYER = r"^transformer\.((?:en|de)coder\.layers\.\d+)\."
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.0\.body\.layer(\d+)\.", r"backbone.layer.\1."),
    (r"^backbone\.0\.body\.", r"backbone."),
    (_LAYER + r"multihead_attn\.", r"\1.cross_attn."),
    (_LAYER + r"linear1\.", r"\1.ffn.0."),
    (_LAYER + r"linear2\.", r"\1.ffn.2."),
    (r"^transformer\.", r""),
    (r"^class_embed\.", r"class_head."),
    (r"^bbox_embed\.layers\.0\.", r"box_head.0."),
    (r"^bbox_embed\.layers\.1\.", r"box_head.2."),
    (r"^bbox_embed\.layers\.2\.", r"box_head.4."),
)
# What a backbone of another source may still have: counters of its batch norms and ImageNet's classifier.
UNUSED = (r"\.num_batches_tracked$", r"^backbone\.0\.body\.fc\.")


def renamed(tensors: Mapping[str, Tensor], variant: DetrConfig) -> dict[str, Tensor]:
    """Return the tensors under this network's names, without what inference does not use."""
    kept = {key: tensor for key, tensor in tensors.items() if not any(re.search(each, key) for each in UNUSED)}
    return {renamed_once(key, RENAMES): tensor for key, tensor in kept.items()}


def class_count(state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of renamed weights, without no object; None if they have no class head."""
    classes = rows(state, "class_head.bias")
    return None if classes is None else classes - 1


def likely_cause(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], variant: DetrConfig) -> str | None:
    """Return in one sentence why weights most likely do not fit a variant, or None.

    Args:
        tensors: by the checkpoint's own names.
        state: the same by this network's names, from `renamed`.
        variant: what they were to fit.
    """
    other = next((words for words, pattern in _OTHERS if any(re.match(pattern, key) for key in tensors)), None)
    return other or _other_settings(state or renamed(tensors, variant), variant)


def contradiction(file_name: str, arguments: Mapping[str, Any], variant: DetrConfig) -> str | None:
    """Return in one sentence why a checkpoint is of another number of heads or dilation than a variant, or None.

    Its tensors fit either way, and the boxes would be wrong.

    Args:
        file_name: of the checkpoint; the published ones say whether they are DC5.
        arguments: of the training program.
        variant: what it is to fit.
    """
    published = {Path(str(preset.checkpoint)).stem: preset for preset in PRESETS.values()}
    known = published.get(Path(file_name).stem)
    if known is not None and known.backbone.dilated != variant.backbone.dilated:
        verb = "is" if variant.backbone.dilated else "is not"
        return f"{file_name} is the published file of {known.name}, variant {variant.name!r} {verb} one of DC5"
    for key, ours in (("dilation", variant.backbone.dilated), ("nheads", variant.num_heads)):
        if arguments.get(key, ours) != ours:
            return f"this checkpoint was trained with {key}={arguments[key]}, variant {variant.name!r} has {ours}"
    return None


_NOT_OURS = "expected are DETR's, as facebookresearch/detr writes them"
# What people hold instead, by keys that only it has; the first that fits counts.
_OTHERS = (
    (
        "this checkpoint is DETR's segmentation model, with a mask head; this program runs the detection models",
        r"(detr\.|mask_head\.|bbox_attention\.)",
    ),
    (
        "this checkpoint normalises before attention (pre_norm), which is not implemented; expected pre_norm=False",
        r"transformer\.encoder\.norm\.",
    ),
    (
        "this checkpoint has a learned position encoding, which is not implemented; expected position_embedding='sine'",
        r"backbone\.1\.(row|col)_embed\.",
    ),
    (f"these are weights of Co-DETR; {_NOT_OURS}", r"query_head\."),
    (f"these are weights of an RT-DETR; {_NOT_OURS}", r"(decoder\.dec_score_head|decoder\.enc_score_head)\."),
    (
        f"these are weights of Deformable DETR or a detector derived from it; {_NOT_OURS}",
        r"transformer\.(level_embed|(en|de)coder\.layers\.\d+\.(self|cross)_attn\.sampling_offsets)",
    ),
    (
        f"these are weights of Conditional DETR, DAB-DETR or a detector derived from them; {_NOT_OURS}",
        r"transformer\.decoder\.(ref_point_head|query_scale|layers\.\d+\.sa_qcontent_proj)\.",
    ),
    (f"these are weights of DETR as mmdetection has it; {_NOT_OURS}", r"(bbox_head\.(transformer|fc_cls|fc_reg))\."),
    (
        f"these are weights of DETR as Hugging Face's transformers has it; {_NOT_OURS}",
        r"(class_labels_classifier|bbox_predictor|(model\.)?backbone\.conv_encoder)\.",
    ),
    (
        "these are weights of a backbone alone, as for ImageNet; a whole detector's checkpoint is needed",
        r"layer1\.0\.conv1\.",
    ),
)


def _other_settings(state: Mapping[str, Tensor], variant: DetrConfig) -> str | None:
    """Return which setting of a variant differs in weights of this network; heads and dilation are not seen in them."""
    classes, backbone = class_count(state), _backbone(state)
    if backbone not in (None, wanted := f"R{variant.backbone.depth}"):
        return f"this checkpoint has a backbone {backbone}, variant {variant.name!r} has {wanted}"
    settings = (
        ("queries", rows(state, "query_embed.weight"), variant.num_queries),
        ("channels", _columns(state, "query_embed.weight"), variant.embed_dim),
        ("encoder layers", count(state, r"encoder\.layers\.(\d+)\."), variant.encoder_layers),
        ("decoder layers", count(state, r"decoder\.layers\.(\d+)\."), variant.decoder_layers),
        ("feed-forward channels", rows(state, "encoder.layers.0.ffn.0.weight"), variant.feedforward_dim),
    )
    if other := first_difference(variant.name, settings):
        return other
    if classes is not None and classes != variant.num_classes:
        return (
            f"another class count: the checkpoint has {classes} classes without no object, variant {variant.name!r} "
            f"has {variant.num_classes}; DETR's labels are category ids, so that ids 1 to 4 make 5 classes: name all "
            "with --classes FILE, one a line from 0 on and N/A for ids without a class, or derive a variant with them"
        )
    return None


def _backbone(state: Mapping[str, Tensor]) -> str | None:
    blocks = tuple(count(state, rf"backbone\.layer\.{stage}\.(\d+)\.") or 0 for stage in (1, 2, 3, 4))
    if not any(blocks):
        return None
    if not any(key.endswith(".conv3.weight") for key in state):
        return "of basic blocks (R18 or R34)"
    return next((f"R{depth}" for depth, known in DEPTHS.items() if known == blocks), f"of {blocks} blocks")


def _columns(state: Mapping[str, Tensor], key: str) -> int | None:
    return state[key].shape[1] if key in state and state[key].dim() > 1 else None
