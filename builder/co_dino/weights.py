"""The names of Co-DINO's weights in checkpoints, and what a checkpoint of something else most likely is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from builder.co_dino.config import SwinConfig, Variant
from builder.parts.checkpoints import any_of, class_count, count, first_difference, renamed_once, rows

if TYPE_CHECKING:
    from torch import Tensor

# mmdetection's names, and those of the authors' original release where they differ, as ours.
_ENCODER = r"^query_head\.transformer\.encoder\.layers\.(\d+)\."
_DECODER = r"^query_head\.transformer\.decoder\.layers\.(\d+)\."
_SWIN_BLOCK = r"^backbone\.(?:stages|layers)\.(\d+)\.blocks\.(\d+)\."
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.patch_embed\.(?:projection|proj)\.", r"backbone.patch_embed."),
    (r"^backbone\.patch_embed\.norm\.", r"backbone.patch_norm."),
    (_SWIN_BLOCK + r"attn\.(?:w_msa\.)?", r"backbone.stages.\1.blocks.\2.attn."),
    (_SWIN_BLOCK + r"(?:ffn\.layers\.0\.0|mlp\.fc1)\.", r"backbone.stages.\1.blocks.\2.fc1."),
    (_SWIN_BLOCK + r"(?:ffn\.layers\.1|mlp\.fc2)\.", r"backbone.stages.\1.blocks.\2.fc2."),
    (r"^backbone\.layers\.(\d+)\.", r"backbone.stages.\1."),
    (r"^backbone\.norm(\d+)\.", r"backbone.norms.\1."),
    (r"^backbone\.layer(\d+)\.", r"backbone.layer.\1."),
    (r"^neck\.(convs|extra_convs)\.(\d+)\.conv\.", r"neck.\1.\2.0."),
    (r"^neck\.(convs|extra_convs)\.(\d+)\.gn\.", r"neck.\1.\2.1."),
    (_ENCODER + r"attentions\.0\.", r"encoder.layers.\1.self_attn."),
    (_ENCODER + r"ffns\.0\.layers\.0\.0\.", r"encoder.layers.\1.ffn.0."),
    (_ENCODER + r"ffns\.0\.layers\.1\.", r"encoder.layers.\1.ffn.2."),
    (_ENCODER + r"norms\.0\.", r"encoder.layers.\1.norm1."),
    (_ENCODER + r"norms\.1\.", r"encoder.layers.\1.norm2."),
    (_DECODER + r"attentions\.0\.attn\.", r"decoder.layers.\1.self_attn."),
    (_DECODER + r"attentions\.1\.", r"decoder.layers.\1.cross_attn."),
    (_DECODER + r"ffns\.0\.layers\.0\.0\.", r"decoder.layers.\1.ffn.0."),
    (_DECODER + r"ffns\.0\.layers\.1\.", r"decoder.layers.\1.ffn.2."),
    (_DECODER + r"norms\.0\.", r"decoder.layers.\1.norm1."),
    (_DECODER + r"norms\.1\.", r"decoder.layers.\1.norm2."),
    (_DECODER + r"norms\.2\.", r"decoder.layers.\1.norm3."),
    (r"^query_head\.transformer\.decoder\.(norm|ref_point_head)\.", r"decoder.\1."),
    (r"^query_head\.transformer\.level_embeds$", r"level_embeds"),
    (r"^query_head\.transformer\.enc_output\.", r"proposals.proj."),
    (r"^query_head\.transformer\.enc_output_norm\.", r"proposals.norm."),
    (r"^query_head\.transformer\.query_embed\.", r"query_embed."),
    (r"^query_head\.reg_branches\.{decoder_layers}\.", r"proposals.box_head."),
    (r"^query_head\.cls_branches\.{decoder_layers}\.", r"proposals.class_head."),
    (r"^query_head\.reg_branches\.(\d+)\.", r"decoder.box_heads.\1."),
    (r"^query_head\.cls_branches\.{last_layer}\.", r"class_head."),
)

# In checkpoints, but of no use for boxes at inference: auxiliary heads, mask heads of instance models, losses and their
# buffers, denoising, intermediate class heads, and what mmdetection's data preprocessor keeps.
TRAINING_ONLY = (
    r"^(rpn_head|roi_head|bbox_head|mask_head|mask_iou_head|mask_roi_extractor)\.",
    r"^(data_preprocessor|det_data_preprocessor)\.",
    r"^query_head\.(loss_\w+|dn_generator|label_embedding|downsample)\.",
    r"^query_head\.transformer\.(aux_pos_trans|aux_pos_trans_norm|pos_feats_trans|pos_feats_norm|head_pos_embed)\.",
    r"^query_head\.cls_branches\.{earlier_layer}\.",
)
# Buffers that follow from the configuration, or that only training reads.
RECOMPUTED = (r"\.relative_position_index$", r"\.num_batches_tracked$", r"\.attn_mask$")


def renamed(tensors: Mapping[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Return the tensors under this network's names, without what inference does not use."""
    last = variant.decoder_layers - 1
    layers = {
        "decoder_layers": variant.decoder_layers,
        "last_layer": last,
        "earlier_layer": any_of(range(last)),
    }
    skipped = [pattern.format(**layers) for pattern in (*TRAINING_ONLY, *RECOMPUTED)]
    renames = [(pattern.format(**layers), name) for pattern, name in RENAMES]
    original_swin = any(key.startswith("backbone.layers.") for key in tensors)
    state = {}
    for key, tensor in tensors.items():
        if not any(re.search(pattern, key) for pattern in skipped):
            state[renamed_once(key, renames)] = _merging_order(key, tensor) if original_swin else tensor
    return state


def likely_cause(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], variant: Variant) -> str | None:
    """Return in one sentence why weights most likely do not fit a variant, or None.

    Args:
        tensors: by the checkpoint's own names.
        state: the same by this network's names, from `renamed`.
        variant: what they were to fit.
    """
    other = next((words for words, is_it in _OTHERS if is_it(tensors)), None)
    return other or _other_settings(state, variant)


def _merging_order(key: str, tensor: Tensor) -> Tensor:
    """Reorder the 4C inputs of a patch merging from the original (x, y, c) to mmdetection's (c, y, x)."""
    if ".downsample." not in key or not tensor.dim() or tensor.shape[-1] % 4:
        return tensor
    groups = tensor.reshape(*tensor.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]  # [..., 4 (y, x), C]
    return groups.transpose(-1, -2).flatten(-2)


Keys = Iterable[str]


def _has(*patterns: str) -> Callable[[Keys], bool]:
    """Return a check that every pattern occurs at the start of some key."""
    return lambda keys: all(any(re.match(pattern, key) for key in keys) for pattern in patterns)


def _lacks(check: Callable[[Keys], bool], pattern: str) -> Callable[[Keys], bool]:
    return lambda keys: check(keys) and not any(re.match(pattern, key) for key in keys)


_SUPPORTED = "supported are Swin and ResNet"
_NOT_OURS = "expected are Co-DINO's"
# What people hold instead of a Co-DINO with Swin or ResNet, by keys that only it has; the first that fits counts.
_OTHERS: tuple[tuple[str, Callable[[Keys], bool]], ...] = (
    (
        f"this checkpoint has a ViT backbone; {_SUPPORTED}",
        _has(r"backbone\.(blocks\.\d+\.|pos_embed|cls_token|net\.blocks|layers\.\d+\.attn\.qkv)"),
    ),
    (
        f"this checkpoint has a ConvNeXt backbone; {_SUPPORTED}",
        _has(r"backbone\.(downsample_layers|stages\.\d+\.\d+\.(depthwise_conv|dwconv))"),
    ),
    (f"this checkpoint has an InternImage backbone; {_SUPPORTED}", _has(r"backbone\.levels\.\d+\.blocks\.\d+\.dcn")),
    (f"this checkpoint has a FocalNet backbone; {_SUPPORTED}", _has(r"backbone\.layers\.\d+\.blocks\.\d+\.modulation")),
    (
        "this checkpoint is a Co-Deformable-DETR; of Co-DETR's models this program runs Co-DINO",
        _lacks(_has(r"query_head\.transformer\.encoder"), r"query_head\.transformer\.decoder\.ref_point_head"),
    ),
    (
        f"these are weights of DINO as mmdetection has it, without Co-DETR's heads; {_NOT_OURS}",
        _lacks(_has(r"(memory_trans_fc|dn_query_generator|bbox_head\.cls_branches)\."), r"query_head\."),
    ),
    (
        f"these are weights of an RT-DETR; {_NOT_OURS}",
        _has(r"(decoder\.dec_score_head|decoder\.dec_bbox_head|decoder\.enc_score_head|backbone\.conv1\.conv1_1)"),
    ),
    (
        f"these are weights of DINO of IDEA Research or a detector derived from it; {_NOT_OURS}",
        _has(
            r"transformer\.(encoder\.layers\.\d+\.self_attn\.sampling_offsets|decoder\.bbox_embed|enc_out_class_embed)"
        ),
    ),
    (f"these are weights of Deformable DETR; {_NOT_OURS}", _has(r"transformer\.level_embed", r"class_embed\.")),
    (f"these are weights of DETR; {_NOT_OURS}", _has(r"(transformer\.encoder|class_embed)\.", r"bbox_embed\.")),
    (f"these are weights of a YOLO; {_NOT_OURS}", _has(r"(model\.)?\d+\.(conv|cv1|m)\.")),
    (
        f"these are weights of a two-stage or one-stage detector without a DETR head; {_NOT_OURS}",
        _lacks(_has(r"(roi_head|rpn_head|bbox_head)\.", r"backbone\."), r"query_head\."),
    ),
    (
        "these are weights of a backbone alone, as for ImageNet; a whole detector's checkpoint is needed",
        _lacks(
            _has(r"(layers\.\d+\.blocks|layer1\.0|stages\.\d+|blocks\.\d+|patch_embed)\."), r"(backbone|query_head)\."
        ),
    ),
    (
        "this checkpoint has no query head: it is cut down, or of another detector",
        _lacks(_has(r"backbone\."), r"(query_head|decoder)\."),
    ),
)


def _other_settings(state: Mapping[str, Tensor], variant: Variant) -> str | None:
    """Return which setting of a variant differs in weights of this network."""
    found = _backbone(state)
    wanted = variant.backbone.label
    if found is not None and found != wanted:
        return f"this checkpoint has a {found} backbone, variant {variant.name!r} has {wanted}"
    settings = (
        ("queries", rows(state, "query_embed.weight"), variant.num_queries),
        ("classes", class_count(state), variant.num_classes),
        ("encoder layers", count(state, r"encoder\.layers\.(\d+)\."), variant.encoder_layers),
        ("feature levels", rows(state, "level_embeds"), variant.num_levels),
        ("decoder layers", count(state, r"decoder\.layers\.(\d+)\."), variant.decoder_layers),
    )
    return first_difference(variant.name, settings)


def _backbone(state: Mapping[str, Tensor]) -> str | None:
    """Return the label of the backbone that renamed weights have; None if it is neither of those supported."""
    patches = state.get("backbone.patch_embed.weight")
    if patches is not None:
        depths = tuple(
            count(state, rf"backbone\.stages\.{stage}\.blocks\.(\d+)\.") or 0
            for stage in range(count(state, r"backbone\.stages\.(\d+)\.") or 0)
        )
        return SwinConfig(embed_dim=len(patches), depths=depths).label if patches.dim() else None
    blocks = count(state, r"backbone\.layer\.3\.(\d+)\.")
    return None if blocks is None else {6: "R50", 23: "R101", 36: "R152"}.get(blocks, "ResNet")
