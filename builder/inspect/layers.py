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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from builder.detector import Detector
from builder.inspect.difference import Difference, difference
from builder.inspect.marked import Arrays, MarkedEngine
from builder.inspect.marks import Marks
from builder.inspect.watch import Tap, watched
from builder.pipeline.export import OUTPUT_NAMES
from model_repository.torch_runner import float32_products
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
CHOICE = "choice"  # ends the name of a top-k in place of a module's


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
    comparison = LayerComparison(precision, engine.what, [], [], {}, [name for name, *_ in samples])
    found: dict[str, Layer] = {}
    losses: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    names: dict[Tap, str] = {}
    for index, (sample, images, sizes) in enumerate(samples):
        arrays = engine.run(images, sizes)
        if index == 0:
            shapes = _shapes(detector, images, sizes)
            names = match(shapes, engine.marks, arrays)
            if not names:
                raise CodetrError(
                    "no tensor of the engine can be told to be a module's: its nodes carry no names of modules; build "
                    "it again with this version"
                )
            comparison.unseen = _unseen(detector, shapes, names)
        given = Given(
            {tap: arrays[name] for tap, name in names.items() if name in arrays},
            {
                (module, i): arrays[name]
                for module, each in engine.marks.chosen.items()
                for i, name in enumerate(each)
                if name in arrays
            },
        )
        for name, value in _run_both(detector, given, arrays, images, sizes).items():
            layer = found.setdefault(name, _layer(detector, name, value))
            _add(layer, sample, value)
        if half is not None:
            own_way = _collect(half, images, sizes)
            own_way.given = Given(
                {tap: array for tap, array in own_way.given.tensors.items() if tap in given.tensors},
                {key: array for key, array in own_way.given.choices.items() if key in given.choices},
            )
            for name, value in _run_both(detector, own_way.given, own_way.outputs, images, sizes).items():
                own, carried = losses[name]
                losses[name] = max(own, value.own.judged), max(carried, value.carried.judged)
    for layer in found.values():
        own, carried = losses[layer.name]
        layer.own_limit = max(OWN[precision], TIMES_PYTORCH * own)
        layer.carried_limit = max(CARRIED[precision], TIMES_PYTORCH * carried)
    comparison.layers = list(found.values())
    comparison.suspects = {layer.name: suspects(detector, layer) for layer in found.values() if layer.leaves}
    return comparison


@dataclass
class Given:
    """An engine's tensors for one batch."""

    tensors: Mapping[Tap, NDArray[Any]]
    choices: Mapping[tuple[str, int], NDArray[Any]]  # by module and number


@dataclass
class _Value:
    """Both differences of one tensor for one sample."""

    own: Difference
    carried: Difference
    shape: tuple[int, ...]
    moved: int = 0
    note: str = ""


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


def _shapes(
    detector: Detector, images: NDArray[np.uint8], sizes: NDArray[np.int32]
) -> list[tuple[Tap, tuple[int, ...]]]:
    found: list[tuple[Tap, tuple[int, ...]]] = []

    def visit(tap: Tap, tensor: Tensor) -> Tensor:
        found.append((tap, tuple(tensor.shape)))
        return tensor

    _run(detector, images, sizes, visit, lambda module, number, scores, places, dim: places)
    return found


def _unseen(detector: nn.Module, shapes: Sequence[tuple[Tap, tuple[int, ...]]], names: Mapping[Tap, str]) -> list[str]:
    """Return the modules of which nothing is seen, nor anything that is in them."""
    seen = {tap.module for tap in names}
    inside = {".".join(module.split(".")[:i]) for module in seen for i in range(1, module.count(".") + 2)}
    passing = {name for name, module in detector.named_modules() if isinstance(module, (nn.Identity, nn.Dropout))}
    return list(dict.fromkeys(tap.module for tap, _ in shapes if tap.module not in inside | passing))


def _run(detector: Detector, images: NDArray[np.uint8], sizes: NDArray[np.int32], visit: Any, choose: Any) -> Any:
    tensors = [torch.from_numpy(array).to(detector.device) for array in (images, sizes)]
    with torch.inference_mode(), float32_products(tf32=False), watched(detector, visit, choose):
        return detector(*tensors)


def _run_both(
    detector: Detector,
    given: Given,
    outputs: Mapping[str, NDArray[Any]],
    images: NDArray[np.uint8],
    sizes: NDArray[np.int32],
) -> dict[str, _Value]:
    """Return the differences of all tensors of one batch by name, in the order in which PyTorch makes them."""
    own, _ = _differences(detector, given, outputs, images, sizes, exchange=True)
    carried, notes = _differences(detector, given, outputs, images, sizes, exchange=False)
    return {
        name: _Value(value, carried[name][0], shape, moved, notes.get(name, ""))
        for name, (value, shape, moved) in own.items()
    }


def _differences(
    detector: Detector,
    given: Given,
    outputs: Mapping[str, NDArray[Any]],
    images: NDArray[np.uint8],
    sizes: NDArray[np.int32],
    exchange: bool,
) -> tuple[dict[str, tuple[Difference, tuple[int, ...], int]], dict[str, str]]:
    found: dict[str, tuple[Difference, tuple[int, ...], int]] = {}
    notes: dict[str, str] = {}
    lost: list[str] = []  # choices that the engine does not tell

    def visit(tap: Tap, tensor: Tensor) -> Tensor:
        array = given.tensors.get(tap)
        if array is None:
            return tensor
        actual = torch.from_numpy(np.ascontiguousarray(array)).to(tensor.device)
        found[str(tap)] = difference(tensor, actual), tuple(tensor.shape), 0
        if lost:
            notes[str(tap)] = f"after {lost[0]}, which the engine does not tell: rows may be others'"
        return actual.to(tensor.dtype) if exchange else tensor

    def choose(module: str, number: int, scores: Tensor, places: Tensor, dim: int) -> Tensor:
        name = choice_name(module, number)
        array = given.choices.get((module, number))
        if array is None or array.shape != tuple(places.shape):
            lost.append(name)
            return places
        actual = torch.from_numpy(array.astype(np.int64)).to(places.device)
        if int(actual.min()) < 0 or int(actual.max()) >= scores.shape[dim]:
            found[name] = Difference(torch.inf, torch.inf, 0), tuple(places.shape), int((actual != places).sum())
            lost.append(name)
            return places
        # by all scores, since the best ones may all be near 0
        expected, made = (scores.gather(dim, each).double() for each in (places, actual))
        scale = scores.double().square().mean().sqrt().clamp(min=1e-12)
        apart = expected - made
        error = float(apart.square().mean().sqrt() / scale)
        worst = float((apart.abs() / (scale + expected.abs())).max())
        found[name] = Difference(error, worst, 0), tuple(places.shape), int((actual != places).sum())
        return actual

    made = _run(detector, images, sizes, visit, choose)
    for name, tensor in zip(OUTPUT_NAMES, made, strict=True):
        actual = torch.from_numpy(np.ascontiguousarray(outputs[name]))
        if tensor.is_floating_point():
            found[name] = difference(tensor, actual), tuple(tensor.shape), 0
        else:
            other = int((tensor.cpu() != actual).sum())
            found[name] = Difference(other / max(actual.numel(), 1), 0.0, 0), tuple(tensor.shape), other
    return found, notes


def choice_name(module: str, number: int) -> str:
    """Return what a top-k is called among the layers."""
    name = f"{module}.{CHOICE}" if module else CHOICE
    return name if number == 0 else f"{name} [{number}]"


@dataclass
class _OwnWay:
    given: Given
    outputs: dict[str, NDArray[Any]]


def _collect(detector: Detector, images: NDArray[np.uint8], sizes: NDArray[np.int32]) -> _OwnWay:
    """Return what PyTorch's own detector of another precision makes, as an engine's tensors."""
    tensors: dict[Tap, NDArray[Any]] = {}
    choices: dict[tuple[str, int], NDArray[Any]] = {}

    def visit(tap: Tap, tensor: Tensor) -> Tensor:
        tensors[tap] = tensor.float().cpu().numpy()
        return tensor

    def choose(module: str, number: int, scores: Tensor, places: Tensor, dim: int) -> Tensor:
        choices[module, number] = places.cpu().numpy()
        return places

    made = _run(detector, images, sizes, visit, choose)
    outputs = {name: tensor.cpu().numpy() for name, tensor in zip(OUTPUT_NAMES, made, strict=True)}
    return _OwnWay(Given(tensors, choices), outputs)


def _layer(detector: Detector, name: str, value: _Value) -> Layer:
    module = _module_of(name)
    parts = module.split(".")
    parents = tuple(".".join(parts[:i]) for i in range(1, len(parts)))
    if name in OUTPUT_NAMES:
        return Layer(name, "output", (), value.shape)
    if CHOICE in name.split(" ")[0].split("."):
        return Layer(name, "top-k", (*parents, module) if module else (), value.shape)
    return Layer(name, type(detector.get_submodule(module)).__name__, parents, value.shape)


def _module_of(name: str) -> str:
    """Return the module of a layer's name."""
    module = name.split(" ")[0]
    return module.removesuffix(CHOICE).removesuffix(".") if module.split(".")[-1] == CHOICE else module


def _add(layer: Layer, sample: str, value: _Value) -> None:
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
