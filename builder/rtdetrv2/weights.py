"""The names of RT-DETRv2's weights in checkpoints, and what a checkpoint of something else most likely is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from builder.parts.checkpoints import any_of, class_count, count, first_difference, rows
from builder.rtdetrv2.config import BLOCKS, RTDETRv2Config

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = r"^(backbone\.stages\.\d+\.\d+)\."
_LAYER = r"^(encoder\.attention\.\d+\.\d+|decoder\.layers\.\d+)\."
_MLP = r"^(decoder\.box_heads\.\d+|decoder\.position_head|proposals\.box_head)\."
# Upstream's names as ours; all that fit apply, one after the other.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.conv1\.conv1_1\.", r"backbone.stem.0."),
    (r"^backbone\.conv1\.conv1_2\.", r"backbone.stem.1."),
    (r"^backbone\.conv1\.conv1_3\.", r"backbone.stem.2."),
    (r"^backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.", r"backbone.stages.\1.\2."),
    (_BLOCK + r"branch2a\.", r"\1.convs.0."),
    (_BLOCK + r"branch2b\.", r"\1.convs.1."),
    (_BLOCK + r"branch2c\.", r"\1.convs.2."),
    (_BLOCK + r"short\.conv\.(conv|norm)\.", r"\1.short.\2."),
    (r"^encoder\.encoder\.(\d+)\.layers\.(\d+)\.", r"encoder.attention.\1.\2."),
    (r"^decoder\.input_proj\.", r"input_proj."),
    (r"^decoder\.enc_output\.", r"proposals."),
    (r"^decoder\.enc_score_head\.", r"proposals.class_head."),
    (r"^decoder\.enc_bbox_head\.", r"proposals.box_head."),
    (r"^decoder\.tgt_embed\.", r"query_embed."),
    (r"^decoder\.decoder\.layers\.", r"decoder.layers."),
    (r"^decoder\.query_pos_head\.", r"decoder.position_head."),
    (r"^decoder\.dec_bbox_head\.", r"decoder.box_heads."),
    (r"^decoder\.dec_score_head\.{last_layer}\.", r"class_head."),
    (_LAYER + r"(linear[12])\.", r"\1.ffn.\2."),
    (_MLP + r"layers\.0\.", r"\1.0."),
    (_MLP + r"layers\.1\.", r"\1.2."),
    (_MLP + r"layers\.2\.", r"\1.4."),
)
# In checkpoints, but of no use at inference: denoising, class heads of layers that are not the last to run, and layers
# that only training runs. `auxiliary_heads` are ours in training.
TRAINING_ONLY = (
    r"^decoder\.denoising_class_embed\.",
    r"^decoder\.dec_score_head\.{other_layer}\.",
    r"^decoder\.(decoder\.layers|dec_bbox_head)\.{later_layer}\.",
    r"^auxiliary_heads\.",
)
# Buffers that follow from the configuration or the input's size, that nothing reads, and what upstream's `deploy` adds
# beside the branches it is made of.
RECOMPUTED = (
    r"^decoder\.(anchors|valid_mask)$",
    r"^encoder\.pos_embed\d+$",
    r"\.cross_attn\.num_points_scale$",
    r"\.num_batches_tracked$",
    r"\.bottlenecks\.\d+\.conv\.(weight|bias)$",
)


def renamed(tensors: Mapping[str, Tensor], variant: RTDETRv2Config) -> dict[str, Tensor]:
    """Return the tensors under this network's names, without what inference does not use."""
    run, trained = variant.decoder_layers, _trained_layers(variant)
    layers = {
        "last_layer": str(run - 1),
        "other_layer": any_of(i for i in range(trained) if i != run - 1),
        "later_layer": any_of(range(run, trained)),
    }
    skipped = [pattern.format(**layers) for pattern in (*TRAINING_ONLY, *RECOMPUTED)]
    renames = [(pattern.format(**layers), name) for pattern, name in RENAMES]
    kept = {key: tensor for key, tensor in tensors.items() if not any(re.search(each, key) for each in skipped)}
    return {_rename(key, renames): tensor for key, tensor in kept.items()}


def likely_cause(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], variant: RTDETRv2Config) -> str | None:
    """Return in one sentence why weights most likely do not fit a variant, or None.

    Discrete and bilinear sampling have the same weights: a wrong choice of these two shows only in worse boxes.

    Args:
        tensors: by the checkpoint's own names.
        state: the same by this network's names, from `renamed`.
        variant: what they were to fit.
    """
    other = next((words for words, pattern in _OTHERS if any(re.match(pattern, key) for key in tensors)), None)
    return (
        f"these are weights of {other}; expected are RT-DETRv2's" if other else _other_settings(tensors, state, variant)
    )


# What people hold instead of an RT-DETRv2 with a ResNet-vd, by keys that only it has; the first that fits counts.
_OTHERS: tuple[tuple[str, str], ...] = (
    ("an RT-DETR as transformers has it", r"(decoder\.class_embed|encoder_input_proj|backbone\.model\.embedder)\."),
    ("a Co-DETR", r"query_head\."),
    ("D-FINE or a detector derived from it", r"decoder\.(pre_bbox_head|integral|decoder\.lqe_layers)\b"),
    ("the first RT-DETR", r"(encoder\.input_proj\.\d+\.[01]|decoder\.enc_output\.[01])\."),
    ("an RT-DETRv2 with a backbone other than ResNet-vd", r"backbone\.(stem\.stem\d|stages\.\d+\.(blocks|downsample))"),
    ("a DETR", r"(transformer\.encoder|class_embed)\."),
    ("a YOLO", r"(model\.)?\d+\.(conv|cv1|m)\."),
    ("a backbone alone, as for ImageNet", r"(conv1\.conv1_1|res_layers|layer1\.0|patch_embed)\."),
)


def _other_settings(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], variant: RTDETRv2Config) -> str | None:
    """Return which setting of a variant differs in weights of this network."""
    depth, ours = _depth(state), variant.backbone.depth
    if depth is not None and depth != ours and variant.backbone.blocks == BLOCKS[ours]:
        return f"this checkpoint has a backbone R{depth}vd, variant {variant.name!r} has R{ours}vd"
    samples = rows(state, "decoder.layers.0.cross_attn.attention_weights.weight")
    settings = (
        ("classes", class_count(state), variant.num_classes),
        ("channels in its encoder", rows(state, "encoder.input_proj.0.conv.weight"), variant.encoder.embed_dim),
        (
            "channels within its fusion blocks",
            rows(state, "encoder.fpn_blocks.0.conv1.conv.weight"),
            variant.encoder.fusion_dim,
        ),
        ("channels in its decoder", rows(state, "proposals.proj.weight"), variant.embed_dim),
        ("decoder layers", count(tensors, r"decoder\.decoder\.layers\.(\d+)\."), _trained_layers(variant)),
        ("sampling points a head", samples and samples // variant.num_heads, sum(variant.num_points)),
    )
    return first_difference(variant.name, settings)


def _trained_layers(variant: RTDETRv2Config) -> int:
    return max(variant.decoder_layers, variant.trained_layers or 0)


def _rename(key: str, renames: list[tuple[str, str]]) -> str:
    for pattern, name in renames:
        key = re.sub(pattern, name, key)
    return key


def _depth(state: Mapping[str, Tensor]) -> int | None:
    """Return the depth of the backbone of renamed weights; None if it is none that is known."""
    bottlenecks = any(re.match(r"backbone\.stages\.0\.0\.convs\.2\.", key) for key in state)
    blocks = tuple(count(state, rf"backbone\.stages\.{stage}\.(\d+)\.") for stage in range(4))
    return next((depth for depth in BLOCKS if BLOCKS[depth] == blocks and bottlenecks == (depth >= 50)), None)
