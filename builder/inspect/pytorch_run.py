"""PyTorch's run of one batch: the tensors of its layers, and how far an engine's are from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.detector import Detector
from builder.inspect.difference import Difference, difference
from builder.inspect.watch import Choose, Tap, Visit, watched
from builder.pipeline.export import OUTPUT_NAMES
from model_repository.torch_runner import float32_products

CHOICE = "choice"  # ends the name of a top-k in place of a module's


@dataclass
class Given:
    """An engine's tensors for one batch."""

    tensors: Mapping[Tap, NDArray[Any]]
    choices: Mapping[tuple[str, int], NDArray[Any]]  # places, by module and number
    outputs: Mapping[str, NDArray[Any]]  # the candidates, by the names of the engine's outputs


@dataclass
class TensorDifferences:
    """Both differences of one tensor for one batch."""

    own: Difference
    carried: Difference
    shape: tuple[int, ...]
    moved: int = 0  # of a choice or the labels: those that differ
    note: str = ""  # why its rows may not belong to the same queries


def differences_of(
    detector: Detector, given: Given, images: NDArray[np.uint8], sizes: NDArray[np.int32]
) -> dict[str, TensorDifferences]:
    """Return the differences of all tensors of one batch by name, in the order in which PyTorch makes them.

    Args:
        detector: the reference.
        given: what the engine made of the batch.
        images: uint8 [B, H, W, 3].
        sizes: int32 [B, 2], valid height and width in pixels.
    """
    own, _ = _differences(detector, given, images, sizes, exchange=True)
    carried, notes = _differences(detector, given, images, sizes, exchange=False)
    return {
        name: TensorDifferences(value, carried[name][0], shape, moved, notes.get(name, ""))
        for name, (value, shape, moved) in own.items()
    }


def _differences(
    detector: Detector, given: Given, images: NDArray[np.uint8], sizes: NDArray[np.int32], exchange: bool
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
        exists = int(actual.min()) >= 0 and int(actual.max()) < scores.shape[dim]
        apart = _choice_difference(scores, places, actual, dim) if exists else Difference(torch.inf, torch.inf, 0)
        found[name] = apart, tuple(places.shape), int((actual != places).sum())
        if not exists:
            lost.append(name)
        return actual if exists else places

    made = _run(detector, images, sizes, visit, choose)
    for name, tensor in zip(OUTPUT_NAMES, made, strict=True):
        found[name] = _output_difference(tensor, torch.from_numpy(np.ascontiguousarray(given.outputs[name])))
    return found, notes


def _choice_difference(scores: Tensor, places: Tensor, actual: Tensor, dim: int) -> Difference:
    """Return how far the scores at the engine's places are from those at PyTorch's, by the scale of all scores.

    By all scores, since the best ones may all be near 0.
    """
    expected, made = (scores.gather(dim, each).double() for each in (places, actual))
    scale = scores.double().square().mean().sqrt().clamp(min=1e-12)
    apart = expected - made
    error = float(apart.square().mean().sqrt() / scale)
    worst = float((apart.abs() / (scale + expected.abs())).max())
    return Difference(error, worst, 0)


def _output_difference(tensor: Tensor, actual: Tensor) -> tuple[Difference, tuple[int, ...], int]:
    """Return the difference of boxes, scores or labels, the shape, and the number of labels that differ."""
    if tensor.is_floating_point():
        return difference(tensor, actual), tuple(tensor.shape), 0
    other = int((tensor.cpu() != actual).sum())
    return Difference(other / max(actual.numel(), 1), 0.0, 0), tuple(tensor.shape), other


def choice_name(module: str, number: int) -> str:
    """Return what a top-k is called among the layers."""
    name = f"{module}.{CHOICE}" if module else CHOICE
    return name if number == 0 else f"{name} [{number}]"


def shapes_of(
    detector: Detector, images: NDArray[np.uint8], sizes: NDArray[np.int32]
) -> list[tuple[Tap, tuple[int, ...]]]:
    """Return the shapes of all floating-point tensors that modules return, in the order in which they do."""
    found: list[tuple[Tap, tuple[int, ...]]] = []

    def visit(tap: Tap, tensor: Tensor) -> Tensor:
        found.append((tap, tuple(tensor.shape)))
        return tensor

    _run(detector, images, sizes, visit, lambda module, number, scores, places, dim: places)
    return found


def tensors_of(detector: Detector, images: NDArray[np.uint8], sizes: NDArray[np.int32], like: Given) -> Given:
    """Return what PyTorch's own detector of another precision makes, as an engine that tells the tensors of `like`."""
    tensors: dict[Tap, NDArray[Any]] = {}
    choices: dict[tuple[str, int], NDArray[Any]] = {}

    def visit(tap: Tap, tensor: Tensor) -> Tensor:
        if tap in like.tensors:
            tensors[tap] = tensor.float().cpu().numpy()
        return tensor

    def choose(module: str, number: int, scores: Tensor, places: Tensor, dim: int) -> Tensor:
        if (module, number) in like.choices:
            choices[module, number] = places.cpu().numpy()
        return places

    made = _run(detector, images, sizes, visit, choose)
    outputs = {name: tensor.cpu().numpy() for name, tensor in zip(OUTPUT_NAMES, made, strict=True)}
    return Given(tensors, choices, outputs)


def _run(
    detector: Detector, images: NDArray[np.uint8], sizes: NDArray[np.int32], visit: Visit, choose: Choose
) -> tuple[Tensor, ...]:
    """Return the boxes, scores and labels of one batch."""
    tensors = [torch.from_numpy(array).to(detector.device) for array in (images, sizes)]
    with torch.inference_mode(), float32_products(tf32=False), watched(detector, visit, choose):
        return detector(*tensors)
