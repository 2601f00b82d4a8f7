"""Which layers are quantised: groups by name, or patterns of module names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from builder.detector import Detector
from builder.engines import EngineError
from builder.families import family_of
from builder.quantise.layers import Layer

CONVOLUTIONS, LINEARS, NECK = "backbone-convs", "backbone-linears", "neck"
PROJECTIONS, ENCODER_FFN = "projections", "encoder-ffn"
# All groups, in the order of the network. Decoder, attention products, softmax, norms, residuals, sampling offsets and
# heads are in none: INT8 costs most there, and there is least to gain.
GROUPS = (CONVOLUTIONS, LINEARS, NECK, PROJECTIONS, ENCODER_FFN)
# The parts of `builder.family.Family.parts` that a group takes its layers from.
_PARTS = {CONVOLUTIONS: "backbone", LINEARS: "backbone"}
_KINDS: Mapping[str, type[nn.Module]] = {CONVOLUTIONS: nn.Conv2d, LINEARS: nn.Linear}


def groups_of(detector: Detector) -> dict[str, dict[str, Layer]]:
    """Return the layers of each group that a detector has, by their names."""
    parts = family_of(detector.variant).parts
    found = {}
    for group in GROUPS:
        layers = _matching(detector, parts.get(_PARTS.get(group, group), ()))
        kind = _KINDS.get(group, nn.Module)
        found[group] = {name: layer for name, layer in layers.items() if isinstance(layer, kind)}
    return {group: layers for group, layers in found.items() if layers}


def words_in(text: str) -> tuple[str, ...]:
    """Return the words of a text with commas between them.

    Raises:
        EngineError: one is empty.
    """
    words = tuple(word.strip() for word in text.split(","))
    if not all(words):
        raise EngineError(f"{text!r} has an empty word; expected groups or patterns of modules, with commas between")
    return words


def chosen_layers(detector: Detector, wanted: Sequence[str]) -> dict[str, Layer]:
    """Return the layers that words choose, by their names.

    Args:
        detector: whose names of modules are those of its deployed form.
        wanted: groups, or patterns of modules as the shell's; a pattern also reaches what no group has.

    Raises:
        EngineError: a word chooses no linear layer or convolution; names the groups there are.
    """
    groups = groups_of(detector)
    chosen: dict[str, Layer] = {}
    for word in wanted:
        layers = groups[word] if word in groups else _matching(detector, (word,))
        if not layers:
            raise EngineError(
                f"{word!r} chooses no linear layer or convolution of {detector.variant.name}; its groups are "
                f"{', '.join(groups) or 'none'}, and any other word is a pattern of module names, such as "
                "'encoder.layers.*'"
            )
        chosen |= layers
    return {name: layer for name, layer in _layers(detector).items() if name in chosen}


def _layers(detector: nn.Module) -> dict[str, Layer]:
    return {name: module for name, module in detector.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


def _matching(detector: nn.Module, patterns: Sequence[str]) -> dict[str, Layer]:
    return {
        name: layer
        for name, layer in _layers(detector).items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }
