"""An engine against PyTorch, layer by layer: which tensor leaves its tolerance first, and by how much.

Two errors are taken of each tensor that a module returns:

* the *own* one: PyTorch's module is given what the engine's modules before it made, so that only what this layer itself
  does wrong is left;
* the *carried* one: PyTorch goes its own way from the pixels on, and what earlier layers did adds up.

Where both choose the best of many (the encoder's proposals, the candidates), close scores may change places, and all
rows after it belong to other queries. So PyTorch goes on with the engine's choice, and the choice itself is judged by
the scores that it was made by.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from builder.detector import Detector
from builder.inspect.marked import Arrays, MarkedEngine
from builder.inspect.marks import Marks
from builder.inspect.pytorch_run import CHOICE, Given, TensorDifferences, differences_of, shapes_of, tensors_of
from builder.inspect.watch import Tap
from builder.pipeline.export import OUTPUT_NAMES
from serving.errors import CodetrError

# Own errors, relative to the root mean square of the tensor. Float32 has 24 bits: a sum in another order moves a layer
# by 1e-7 to 3e-6, and rounding one tensor to FP16, which has 11, by 2e-4. Half types: a layer rounds its operands and
# its result once each, 3e-4 in FP16 and 2e-3 in BF16, and where it is more, in attention, PyTorch itself shows it. INT8
# has 255 steps for the whole range of a tensor, and 6e-2 is seen in a demo that keeps its AP; E4M3 has three bits. Such
# an engine is meant to be this far away.
OWN = {"float32": 3e-5, "float16": 1.5e-3, "bfloat16": 1.2e-2, "int8": 1e-1, "fp8": 8e-2}
# Errors add up over the depth, and a decoder that refines boxes makes them larger.
CARRIED = {"float32": 2e-3, "float16": 2e-2, "bfloat16": 1e-1, "int8": 3e-1, "fp8": 4e-1}
# A half type may also lose this many times what PyTorch's own detector in it loses at the same tensor.
TIMES_PYTORCH = 3.0


@dataclass
class Layer:
    """One tensor of one module, over all samples."""

    name: str
    kind: str  # the module's class
    parents: tuple[str, ...]  # modules that the module is in, the outermost first
    shape: tuple[int, ...]
    own: float = 0.0  # the worst sample's
    carried: float = 0.0
    own_limit: float = 0.0
    carried_limit: float = 0.0
    not_finite: int = 0
    moved: int = 0  # of a choice: rows that differ
    note: str = ""
    per_sample: list[dict[str, str | float]] = field(default_factory=list)

    @property
    def comparable(self) -> bool:
        """Whether its rows are known to belong to the same queries on both sides."""
        return not self.note

    @property
    def leaves(self) -> bool:
        """Whether the layer itself does more than its tolerance allows."""
        return self.comparable and not self.own <= self.own_limit

    @property
    def leaves_carried(self) -> bool:
        """Whether it is further from PyTorch than its tolerance allows, whoever did it."""
        return self.comparable and not self.carried <= self.carried_limit


@dataclass
class LayerComparison:
    """What was found, by depth."""

    precision: str
    what: str  # was run
    layers: list[Layer]
    unseen: list[str]  # modules of PyTorch's run that have no tensor of their own in the engine
    suspects: dict[str, list[str]]  # weights that may be behind a layer's error, by its name
    samples: list[str]
    notes: list[str] = field(default_factory=list)
    unmarked: float | None = None  # the scores of the repository's own engine against those of the marked one

    @property
    def first(self) -> Layer | None:
        """The first layer that leaves its own tolerance, or else that is too far from PyTorch; None if none is."""
        own = next((layer for layer in self.layers if layer.leaves), None)
        return own or next((layer for layer in self.layers if layer.leaves_carried), None)


def compare_layers(
    detector: Detector,
    engine: MarkedEngine,
    samples: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.int32]]],
    precision: str,
    half: Detector | None = None,
) -> LayerComparison:
    """Compare an engine's layers with those of `detector`, deployed and in float32.

    Args:
        detector: the reference.
        engine: whose modules' outputs are marked.
        samples: name, images uint8 [B, H, W, 3] and valid sizes int32 [B, 2], of a batch that both take.
        precision: of the engine, a key of `OWN`.
        half: the detector, deployed, in its half precision, of which the tolerances are a multiple; None for float32.

    Raises:
        CodetrError: no tensor of the engine can be told to be a module's.
    """
    found: dict[str, Layer] = {}
    names: dict[Tap, str] = {}
    unseen: list[str] = []
    for index, (sample, images, sizes) in enumerate(samples):
        arrays = engine.run(images, sizes)
        if index == 0:
            shapes = shapes_of(detector, images, sizes)
            names = match(shapes, engine.marks, arrays)
            if not names:
                raise CodetrError(
                    "no tensor of the engine can be told to be a module's: its nodes carry no names of modules; build "
                    "it again with this version"
                )
            unseen = _unseen(detector, shapes, names)
        given = _given(engine.marks, names, arrays)
        for name, value in differences_of(detector, given, images, sizes).items():
            _add(found.setdefault(name, _layer(detector, name, value.shape, precision)), sample, value)
        if half is not None:
            own_way = tensors_of(half, images, sizes, given)
            for name, value in differences_of(detector, own_way, images, sizes).items():
                if name in found:
                    _allow(found[name], value)
    blamed = {layer.name: suspects(detector, layer) for layer in found.values() if layer.leaves}
    return LayerComparison(precision, engine.what, list(found.values()), unseen, blamed, [name for name, *_ in samples])


def match(shapes: Sequence[tuple[Tap, tuple[int, ...]]], marks: Marks, arrays: Arrays) -> dict[Tap, str]:
    """Return the engine's tensor for each of PyTorch's, where there is no doubt; each tensor once, for the innermost.

    Of a module the n-th tensor of a shape is the engine's n-th of that shape; where their numbers differ, because the
    engine keeps none that nobody reads, nothing is said of them.
    """
    by_shape: dict[tuple[str, tuple[int, ...]], list[Tap]] = defaultdict(list)
    for tap, shape in shapes:
        by_shape[tap.module, shape].append(tap)
    pairs: dict[Tap, str] = {}
    for (module, shape), taps in by_shape.items():
        known = [name for name in marks.returned.get(module, ()) if name in arrays and arrays[name].shape == shape]
        if len(known) == len(taps):
            pairs |= dict(zip(taps, known, strict=True))
    taken: set[str] = set()
    result = {}
    for tap, _ in shapes:
        if tap in pairs and pairs[tap] not in taken:
            taken.add(pairs[tap])
            result[tap] = pairs[tap]
    return result


def _unseen(detector: nn.Module, shapes: Sequence[tuple[Tap, tuple[int, ...]]], names: Mapping[Tap, str]) -> list[str]:
    """Return the modules of which nothing is seen, nor anything that is in them."""
    seen = {tap.module for tap in names}
    inside = {".".join(module.split(".")[:i]) for module in seen for i in range(1, module.count(".") + 2)}
    passing = {name for name, module in detector.named_modules() if isinstance(module, (nn.Identity, nn.Dropout))}
    return list(dict.fromkeys(tap.module for tap, _ in shapes if tap.module not in inside | passing))


def _given(marks: Marks, names: Mapping[Tap, str], arrays: Arrays) -> Given:
    """Return an engine's outputs by what PyTorch calls them."""
    places = {(module, i): name for module, each in marks.chosen.items() for i, name in enumerate(each)}
    return Given(
        {tap: arrays[name] for tap, name in names.items() if name in arrays},
        {choice: arrays[name] for choice, name in places.items() if name in arrays},
        arrays,
    )


def _layer(detector: Detector, name: str, shape: tuple[int, ...], precision: str) -> Layer:
    module = _module_of(name)
    parts = module.split(".")
    parents = tuple(".".join(parts[:i]) for i in range(1, len(parts)))
    if name in OUTPUT_NAMES:
        kind, parents = "output", ()
    elif CHOICE in name.split(" ")[0].split("."):
        kind, parents = "top-k", (*parents, module) if module else ()
    else:
        kind = type(detector.get_submodule(module)).__name__
    return Layer(name, kind, parents, shape, own_limit=OWN[precision], carried_limit=CARRIED[precision])


def _module_of(name: str) -> str:
    """Return the module of a layer's name."""
    module = name.split(" ")[0]
    return module.removesuffix(CHOICE).removesuffix(".") if module.split(".")[-1] == CHOICE else module


def _add(layer: Layer, sample: str, value: TensorDifferences) -> None:
    """Take in one sample."""
    layer.own, layer.carried = max(layer.own, value.own.judged), max(layer.carried, value.carried.judged)
    layer.not_finite += value.own.not_finite
    layer.moved += value.moved
    layer.note = layer.note or value.note
    layer.per_sample.append(
        {
            "sample": sample,
            "own": value.own.error,
            "own_worst": value.own.worst,
            "carried": value.carried.error,
            "carried_worst": value.carried.worst,
            "not_finite": value.own.not_finite,
            "moved": value.moved,
        }
    )


def _allow(layer: Layer, value: TensorDifferences) -> None:
    """Let a layer lose a multiple of what PyTorch's own detector in the half precision loses of one sample."""
    layer.own_limit = max(layer.own_limit, TIMES_PYTORCH * value.own.judged)
    layer.carried_limit = max(layer.carried_limit, TIMES_PYTORCH * value.carried.judged)


def suspects(detector: Detector, layer: Layer) -> list[str]:
    """Return the weights that can be behind a layer's own error: the module's, and those that its parents read.

    A parent's own weights are read between its children, and a module that is never called, such as an embedding, is
    read by the detector itself.
    """
    if layer.name in OUTPUT_NAMES:
        return []
    own = _module_of(layer.name)
    found = [f"{own}.{name}" for name, _ in detector.get_submodule(own).named_parameters()] if own else []
    for parent in reversed(layer.parents):
        module = detector.get_submodule(parent)
        found += [f"{parent}.{name}" for name, _ in _direct(module)]
    found += [name for name, _ in _direct(detector)]
    return list(dict.fromkeys(found))


def _direct(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return what a module reads itself: its own weights and constants, and those of embeddings, which nobody calls."""
    found = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, child in module.named_children():
        if isinstance(child, nn.Embedding):
            found += [(f"{name}.{weight}", tensor) for weight, tensor in child.named_parameters()]
    return found
