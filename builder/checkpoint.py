"""Loads published and fine-tuned checkpoints, by one rename table, with every leftover key an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from builder.detector import Detector
from builder.families import FAMILIES, family_of, read_variant
from builder.family import DetectorConfig, Family
from builder.precision import PRECISIONS, Precision
from builder.reading.checkpoint_file import METADATA, CheckpointError, read_file
from builder.reading.unpickle import StandIn
from builder.variants import get_variant
from codetr_client.text import printable

__all__ = ["DTYPES", "CheckpointError", "Precision", "load_detector", "random_detector", "read_checkpoint"]

DTYPES: dict[Precision, torch.dtype] = {precision: getattr(torch, precision) for precision in PRECISIONS.values()}

# Where training programs put the weights, outermost first; an average of weights is what they would deploy. mmengine's
# EMAHook swaps before it saves: `state_dict` is the average, `ema_state_dict` what was trained.
_NESTINGS = ("state_dict", "ema", "model_ema", "ema_model", "model", "module", "model_state_dict", "net", "params")
# Prefixes that data-parallel training and training frameworks put before every key.
_WRAPPERS = ("module.", "model.", "detector.")
# What torch.compile, checkpointing and sharding put into the keys of a part that they wrap.
_INFIXES = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
# Counters beside averaged weights, by their names in PyTorch and mmengine.
_COUNTERS = ("n_averaged", "steps")
_DEEPEST = 8  # nestings looked into: a mapping may hold itself
_LISTED = 4  # keys of each kind of fault that a message shows
_FAMILIAR, _SHARE = 20, 0.9  # keys beside the backbone, and the share of them, from which on they tell a family

_DERIVE = "give the names of its classes, or derive a variant with them"


class Checkpoint(NamedTuple):
    """The tensors of a checkpoint by their original keys, and what else it says."""

    tensors: Mapping[str, Tensor]
    class_names: tuple[str, ...] | None = None  # from its meta data
    unread: Mapping[str, str] = {}  # classes, by key, of what lies among the weights and is no tensor
    arguments: Mapping[str, Any] = {}  # of the training program, where it saved them


def load_detector(
    variant: DetectorConfig | str | Mapping[str, Any],
    weights: str | Path | Mapping[str, Any],
    precision: Precision = "float32",
) -> Detector:
    """Return a detector in evaluation mode on the CPU, with every one of its weights taken from `weights`.

    Args:
        variant: a `DetectorConfig`, the name of a preset, or a training program's config dict.
        weights: path of a file of `torch.save`, a safetensors file or the index of several; or a state dict (also
            nested or prefixed, as training programs save it), by mmdetection's names, the original release's, or this
            network's own. Its own class names are taken where `variant` has none.
        precision: type of weights and matrix products; coordinates, norms, softmax and box heads stay float32.

    Raises:
        CheckpointError: the file is missing, truncated or foreign; a key is missing or unexpected, a shape is wrong, a
            weight is NaN or infinite, the number of class names contradicts the class count, or the file's name or
            training arguments are those of other settings. `faults` lists all keys.
        VariantError: the variant is unknown or not supported.
    """
    asked = resolve_variant(variant)
    checkpoint = read_checkpoint(weights)
    family = family_of(asked)
    file_name = "" if isinstance(weights, Mapping) else Path(weights).name
    contradiction = family.contradiction(file_name, checkpoint.arguments, asked)
    if contradiction is not None:
        raise CheckpointError(contradiction)
    state = family.renamed(checkpoint.tensors, asked)
    variant = _with_classes(asked, checkpoint, state)
    with torch.device("meta"):
        detector = family.network(variant)
    _check_keys(checkpoint, state, detector.state_dict(), replace(variant, name=asked.name))
    floats = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    _check_finite(floats)
    detector.load_state_dict(floats, assign=True)
    return detector.set_precision(DTYPES[precision]).eval().requires_grad_(False)


def random_detector(variant: DetectorConfig | str, seed: int = 0, precision: Precision = "float32") -> Detector:
    """Return a detector with seeded random weights, for benchmarks and tests without a checkpoint."""
    variant = resolve_variant(variant)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = family_of(variant).network(variant.with_class_names())
    return detector.set_precision(DTYPES[precision]).eval().requires_grad_(False)


def resolve_variant(variant: DetectorConfig | str | Mapping[str, Any]) -> DetectorConfig:
    """Return the configuration that a preset's name or a training program's config dict stands for."""
    if isinstance(variant, DetectorConfig):
        return variant
    return get_variant(variant) if isinstance(variant, str) else read_variant(variant)


def read_checkpoint(weights: str | Path | Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint's tensors and class names without executing anything it contains.

    Raises:
        CheckpointError: the file is missing, damaged or foreign, or holds no weights.
    """
    source = "the state dict" if isinstance(weights, Mapping) else str(weights)
    content = weights if isinstance(weights, Mapping) else read_file(Path(weights))
    found = _weights(content)
    if found is None:
        raise CheckpointError(_no_weights(content, source))
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    unread = {str(key): value.origin for key, value in found.items() if isinstance(value, StandIn)}
    names, arguments = _own_class_names(content, source), _arguments(content)
    return Checkpoint(_without_averages(_unwrapped(tensors)), names, unread, arguments)


def _weights(content: Mapping[Any, Any], depth: int = 0) -> Mapping[Any, Any] | None:
    """Return the mapping within nested ones that holds the weights, or None."""
    for key in _NESTINGS if depth < _DEEPEST else ():
        if isinstance(content.get(key), Mapping):
            found = _weights(content[key], depth + 1)
            if found is not None:
                return found
    return content if any(isinstance(value, Tensor) for value in content.values()) else None


def _no_weights(content: Mapping[Any, Any], source: str) -> str:
    modules = [value for value in content.values() if isinstance(value, StandIn) and value.is_module]
    if modules:
        return (
            f"{source} holds a whole pickled module, {modules[0].origin}; save its weights instead: "
            "torch.save(model.state_dict(), 'weights.pth')"
        )
    keys = [printable(key) for key in content if key != METADATA]
    shown = ", ".join(keys[:12]) + (", ..." if len(keys) > 12 else "")
    return f"{source} holds no weights: expected {', '.join(_NESTINGS)} or tensors, got {shown or 'nothing'}"


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without what wrappers put into their keys, and without the counters of averaged weights."""
    weights = {key: value for key, value in tensors.items() if key not in _COUNTERS}
    for infix in _INFIXES:
        weights = {key.replace(infix, ""): value for key, value in weights.items()}
    for prefix in _WRAPPERS:
        if weights and all(key.startswith(prefix) for key in weights):
            return _unwrapped({key.removeprefix(prefix): value for key, value in weights.items()})
    return weights


def _without_averages(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without mmdetection 2.x's averaging buffers, one beside each weight.

    Its EMA hook swaps before it saves, so the weight's own key holds the average.
    """
    buffers = {"ema_" + key.replace(".", "_") for key in tensors}
    return {key: value for key, value in tensors.items() if key not in buffers}


def _own_class_names(content: Mapping[Any, Any], source: str) -> Any:
    """Return the class names in a checkpoint's meta data: mmengine's, mmcv's, or a safetensors file's text.

    Raises:
        CheckpointError: they are no list of names.
    """
    names = _named_in_meta_data(content)
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
        raise CheckpointError(
            f"{source}: its meta data gives the classes {printable(names)[:60]!r}; expected a list of names (of one: "
            "('cat',), with a comma)"
        )
    return tuple(names)


def _named_in_meta_data(content: Mapping[Any, Any]) -> Any:
    """Return what a checkpoint's meta data has in the place of class names; None if it has nothing there."""
    beside = content.get(METADATA)
    text = beside.get("class_names") if isinstance(beside, Mapping) else None
    if isinstance(text, str) and text:
        try:
            return json.loads(text) if text.startswith("[") else text.split(",")
        except ValueError:
            return text
    meta = content.get("meta")
    if not isinstance(meta, Mapping):
        return None
    dataset = meta.get("dataset_meta")
    dataset = dataset if isinstance(dataset, Mapping) and dataset else meta
    return dataset.get("classes", dataset.get("CLASSES"))


def _arguments(content: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Return the arguments that a training program saved beside the weights as `args`: a dict or argparse's object."""
    held = content.get("args")
    held = held.state if isinstance(held, StandIn) else getattr(held, "__dict__", held)
    return held if isinstance(held, Mapping) else {}


def _with_classes(variant: DetectorConfig, checkpoint: Checkpoint, state: Mapping[str, Tensor]) -> DetectorConfig:
    """Return the variant with class names: its own, or the checkpoint's with their count, or COCO's.

    Raises:
        CheckpointError: the checkpoint has another number of classes than there are names for.
    """
    names = variant.class_names or checkpoint.class_names
    family = family_of(variant)
    count = family.class_count(state)
    if count not in (None, len(names or range(variant.num_classes))):
        ours = f"variant {variant.name!r} has {variant.num_classes}"
        fault = f"another class count: the checkpoint has {count} classes, {ours}"
        if names is not None and names is checkpoint.class_names:
            fault = f"the checkpoint's meta data names {len(names)} classes, its class head has {count}"
        raise CheckpointError(_likely_cause(checkpoint.tensors, {}, variant) or f"{fault}; {_DERIVE}")
    if names is not None and len(names) != variant.num_classes:
        return variant.derive(f"{variant.name}_{len(names)}_classes", class_names=names)
    return replace(variant, class_names=names).with_class_names()


def _check_keys(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], variant: DetectorConfig
) -> None:
    """Refuse weights that are not exactly those of the network, with the likely cause and the keys at fault."""
    kinds = (
        [f"missing: {key} {tuple(expected[key].shape)}" for key in expected if key not in state],
        [f"unexpected: {printable(key)} {tuple(state[key].shape)}" for key in state if key not in expected],
        [
            f"wrong shape: {key} is {tuple(state[key].shape)}, expected {tuple(expected[key].shape)}"
            for key in expected
            if key in state and state[key].shape != expected[key].shape
        ],
        [
            f"wrong type: {key} is {state[key].dtype}, expected floating point"
            for key in expected
            if key in state and expected[key].is_floating_point() and not state[key].is_floating_point()
        ],
        [f"no tensor: {printable(key)} is a {printable(origin)}" for key, origin in checkpoint.unread.items()],
    )
    faults = tuple(fault for kind in kinds for fault in kind)
    if not any(kinds[:4]):
        return
    cause = _likely_cause(checkpoint.tensors, state, variant)
    shown = [line for kind in kinds for line in (*kind[:_LISTED], *_rest(kind))]
    raise CheckpointError(
        f"{cause or f'the checkpoint does not fit variant {variant.name!r}'}: {len(faults)} keys differ:\n  "
        + "\n  ".join(shown),
        faults,
    )


def _likely_cause(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], variant: DetectorConfig) -> str | None:
    """Return why weights most likely do not fit a variant: they are another family's, or what its own finds."""
    shares = {name: _known_share(tensors, family) for name, family in FAMILIES.items()}
    likeliest = max(shares, key=lambda name: shares[name])
    if shares[likeliest] >= _SHARE > shares[variant.family]:
        return (
            f"these are weights of {likeliest}, and variant {variant.name!r} is of {variant.family}; `codetr variants` "
            f"lists those of {likeliest}"
        )
    return family_of(variant).likely_cause(tensors, state, variant)


def _known_share(tensors: Mapping[str, Tensor], family: Family) -> float:
    """Return the share of the weights beside the backbone's that have names of a family's first preset; 0 of few."""
    preset = next(iter(family.presets.values()))
    with torch.device("meta"):
        names = family.network(preset).state_dict().keys()
    keys = [key for key in family.renamed(tensors, preset) if not key.startswith("backbone.")]
    return sum(key in names for key in keys) / len(keys) if len(keys) >= _FAMILIAR else 0.0


def _check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are NaN or infinite: a detector of them finds nothing."""
    faults = tuple(
        f"NaN or infinite: {key}, {count} of {value.numel()}"
        for key, value in state.items()
        if value.is_floating_point() and not value.is_meta and (count := int((~value.isfinite()).sum()))
    )
    if faults:
        raise CheckpointError(
            f"the checkpoint has weights that are NaN or infinite, in {len(faults)} of {len(state)} keys; its training "
            "diverged, or it was saved in a precision that is too narrow: take an earlier one:\n  "
            + "\n  ".join((*faults[:_LISTED], *_rest(list(faults)))),
            faults,
        )


def _rest(kind: list[str]) -> list[str]:
    more = len(kind) - _LISTED
    return [f"... and {more} more {kind[0].split(':')[0]}"] if more > 0 else []
