"""Loads published and fine-tuned Co-DINO checkpoints, by one rename table, with every leftover key an error."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from builder.co_dino.config import Variant
from builder.co_dino.mmdet_config import from_mmdet_config
from builder.co_dino.model import CoDINO
from builder.variants import get_variant
from serving.contract import coco_class_names
from serving.errors import CodetrError

Precision = Literal["float32", "float16", "bfloat16"]
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# Where training programs put the weights, outermost first; an average of weights is what they would deploy.
_NESTINGS = ("state_dict", "ema", "model", "module")
# Prefixes that data-parallel training and torch.compile put before every key.
_WRAPPERS = ("module.", "_orig_mod.")

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

# In published checkpoints, but of no use at inference: auxiliary heads, denoising, intermediate class heads.
TRAINING_ONLY = (
    r"^(rpn_head|roi_head|bbox_head|data_preprocessor)\.",
    r"^query_head\.(dn_generator|label_embedding|downsample)\.",
    r"^query_head\.transformer\.(aux_pos_trans|aux_pos_trans_norm|pos_feats_trans|pos_feats_norm)\.",
    r"^query_head\.cls_branches\.{earlier_layer}\.",
)
# Buffers that follow from the configuration, or that only training reads.
RECOMPUTED = (r"\.relative_position_index$", r"\.num_batches_tracked$")

_DERIVE = "name its classes with --classes FILE, one a line, or derive a variant with them"


class CheckpointError(CodetrError):
    """Weights that cannot be loaded; the message lists the keys or says what is wrong with the file."""


class Checkpoint(NamedTuple):
    """The tensors of a checkpoint by their original keys, and the class names its meta data gives."""

    tensors: Mapping[str, Tensor]
    class_names: tuple[str, ...] | None = None


def load_detector(
    variant: Variant | str | Mapping[str, Any],
    weights: str | Path | Mapping[str, Any],
    precision: Precision = "float32",
) -> CoDINO:
    """Return a detector in evaluation mode on the CPU, with every one of its weights taken from `weights`.

    Args:
        variant: a `Variant`, the name of a preset, or an mmdetection config dict.
        weights: path of a `.pth` or `.safetensors` file, or a state dict (also nested or prefixed, as training
            programs save it), by mmdetection's names, the original release's, or this network's own.
        precision: type of weights and matrix products; coordinates, norms, softmax and box heads stay float32.

    Raises:
        CheckpointError: the file is missing, truncated or foreign; a key is missing or unexpected, a shape is wrong,
            or the number of class names contradicts the class count.
        VariantError: the variant is unknown or not supported.
    """
    variant = resolve_variant(variant)
    checkpoint = read_checkpoint(weights)
    variant = replace(variant, class_names=_class_names(variant, checkpoint))
    with torch.device("meta"):
        detector = CoDINO(variant)
    state = _renamed(checkpoint.tensors, variant)
    _check_classes(state, variant)
    _check_keys(state, detector.state_dict())
    detector.load_state_dict(state, assign=True)
    return detector.set_precision(DTYPES[precision]).eval().requires_grad_(False)


def random_detector(variant: Variant | str, seed: int = 0, precision: Precision = "float32") -> CoDINO:
    """Return a detector with seeded random weights, for benchmarks and tests without a checkpoint."""
    variant = resolve_variant(variant)
    names = variant.class_names or _default_class_names(variant.num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = CoDINO(replace(variant, class_names=names))
    return detector.set_precision(DTYPES[precision]).eval().requires_grad_(False)


def resolve_variant(variant: Variant | str | Mapping[str, Any]) -> Variant:
    """Return the `Variant` that a preset's name or an mmdetection config dict stands for."""
    if isinstance(variant, Variant):
        return variant
    return get_variant(variant) if isinstance(variant, str) else from_mmdet_config(variant)


def read_checkpoint(weights: str | Path | Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint's tensors and class names without executing anything it contains."""
    if isinstance(weights, Mapping):
        return Checkpoint(_tensors(weights, "the state dict"), _meta_class_names(weights))
    path = Path(weights)
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint at {path}; `codetr variants` names the files of mmdetection's projects/CO-DETR"
        )
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = (file.metadata() or {}).get("class_names")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a mapping
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from error
    return Checkpoint(_tensors(tensors, str(path)), tuple(names.split(",")) if names else None)


class _Ignored:
    """Stands in for the training history that mmengine pickles beside the weights."""


def _read_pth(path: Path) -> Checkpoint:
    try:
        with torch.serialization.safe_globals(_harmless_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is truncated or not a PyTorch checkpoint: {reason}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return Checkpoint(_tensors(content, str(path)), _meta_class_names(content))


def _harmless_globals() -> list[Any]:
    """Return what checkpoints of mmengine hold beside tensors: its loss history, and NumPy arrays and scalars."""
    reconstruct, scalar = np.empty(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
    return [
        (_Ignored, "mmengine.logging.history_buffer.HistoryBuffer"),
        *((reconstruct, f"{module}._reconstruct") for module in modules),
        *((scalar, f"{module}.scalar") for module in modules),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")),
    ]


def _tensors(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Unwrap nested dicts and prefixes down to the tensors."""
    while not any(isinstance(value, Tensor) for value in content.values()):
        nesting = next((key for key in _NESTINGS if isinstance(content.get(key), Mapping)), None)
        if nesting is None:
            keys = ", ".join(map(str, list(content)[:8])) or "nothing"
            raise CheckpointError(f"{source} holds no weights: expected {', '.join(_NESTINGS)} or tensors, got {keys}")
        content = content[nesting]
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for prefix in _WRAPPERS:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _meta_class_names(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the class names in mmengine's (`dataset_meta`) or mmcv's (`CLASSES`) meta data."""
    meta = content.get("meta")
    if not isinstance(meta, Mapping):
        return None
    dataset = meta.get("dataset_meta") or meta
    names = dataset.get("classes", dataset.get("CLASSES"))
    return None if names is None else tuple(names)


def _class_names(variant: Variant, checkpoint: Checkpoint) -> tuple[str, ...]:
    names = variant.class_names or checkpoint.class_names or _default_class_names(variant.num_classes)
    if len(names) != variant.num_classes:
        raise CheckpointError(
            f"the checkpoint names {len(names)} classes, variant {variant.name!r} has {variant.num_classes}; {_DERIVE}"
        )
    return names


def _default_class_names(num_classes: int) -> tuple[str, ...]:
    coco = coco_class_names()
    return coco if num_classes == len(coco) else tuple(f"class {label}" for label in range(num_classes))


def _renamed(tensors: Mapping[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Return the tensors under this network's names in float32, without what inference does not use."""
    last = variant.decoder_layers - 1
    layers = {
        "decoder_layers": variant.decoder_layers,
        "last_layer": last,
        "earlier_layer": f"({'|'.join(map(str, range(last))) or '(?!)'})",
    }
    skipped = [pattern.format(**layers) for pattern in (*TRAINING_ONLY, *RECOMPUTED)]
    renames = [(pattern.format(**layers), name) for pattern, name in RENAMES]
    original_swin = any(key.startswith("backbone.layers.") for key in tensors)
    state = {}
    for key, tensor in tensors.items():
        if any(re.search(pattern, key) for pattern in skipped):
            continue
        value = _merging_order(key, tensor) if original_swin else tensor
        state[_rename(key, renames)] = value.float() if value.is_floating_point() else value
    return state


def _rename(key: str, renames: list[tuple[str, str]]) -> str:
    for pattern, name in renames:
        renamed, count = re.subn(pattern, name, key)
        if count:
            return renamed
    return key


def _merging_order(key: str, tensor: Tensor) -> Tensor:
    """Reorder the 4C inputs of a patch merging from the original (x, y, c) to mmdetection's (c, y, x)."""
    if ".downsample." not in key:
        return tensor
    groups = tensor.reshape(*tensor.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]  # [..., 4 (y, x), C]
    return groups.transpose(-1, -2).flatten(-2)


def _check_classes(state: Mapping[str, Tensor], variant: Variant) -> None:
    """Refuse a checkpoint whose only fault may be its class count with a message about that."""
    bias = state.get("class_head.bias")
    if bias is not None and bias.shape != (variant.num_classes,):
        raise CheckpointError(
            f"the checkpoint has {len(bias)} classes, variant {variant.name!r} has {variant.num_classes}; {_DERIVE}"
        )


def _check_keys(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    faults = [f"missing: {key} {tuple(expected[key].shape)}" for key in expected if key not in state]
    faults += [f"unexpected: {key} {tuple(state[key].shape)}" for key in state if key not in expected]
    faults += [
        f"wrong shape: {key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    if faults:
        raise CheckpointError(
            f"the checkpoint does not fit this variant, {len(faults)} keys differ (other backbone, class or query "
            "count?):\n  " + "\n  ".join(faults)
        )
