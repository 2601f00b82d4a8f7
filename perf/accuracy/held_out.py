"""Accuracy of freshly trained demo weights on images that no training saw, recorded in the weights file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from demo.shapes.dataset import write_dataset
from perf.accuracy.collect import collect
from perf.accuracy.dataset import category_of_label, read_dataset
from perf.accuracy.detectors import pytorch_detect
from perf.accuracy.scores import report

# The held-out data set: its seed, which no stage of the training uses, and its number of images.
SEED, IMAGES = 2, 1000


def record_accuracy(
    variant: str,
    weights: Path,
    output: Path,
    device: str,
    images: int = IMAGES,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda indices: indices,
) -> dict[str, Any]:
    """Measure `weights` in float32 on held-out shapes and write AP and AP-small into the file's metadata.

    Args:
        variant: the demo's variant.
        weights: float16 safetensors of `demo.train.run.export_weights`.
        output: folder for the images and results; an interrupted measurement continues from it.
        device: "cuda" or "cpu".
        images: of data set `SEED`.
        progress: wraps the indices of the drawn images.

    Returns:
        The content of `output/accuracy.json`.
    """
    annotations = output / "annotations.json"
    if not annotations.is_file():
        write_dataset(output, images, SEED, progress=progress)
    dataset = read_dataset(annotations, output / "images")
    detect, names = pytorch_detect(variant, weights, "float32", device)
    source, identity = f"pytorch {variant} fp32 {device}", _identity(weights)
    found = collect(dataset, output / "results.jsonl", source, lambda: detect, names, identity=identity)
    result = report(dataset, "pytorch fp32", found, category_of_label(dataset, names), output)
    measured = {"ap": f"{result['ap']:.4f}", "ap_small": f"{result['ap_small']:.4f}"}
    add_metadata(weights, {**measured, "ap_measured_on": f"{images} images of data set {SEED}, float32, {device}"})
    return result


def _identity(weights: Path) -> str:
    """Return a hash of the tensors alone: the metadata beside them change when they have been measured."""
    found = hashlib.sha256()
    for key, tensor in sorted(load_file(weights).items()):
        found.update(key.encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def add_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Add `metadata` to a safetensors file; its tensors stay as they are."""
    with safe_open(path, "pt") as file:
        kept = file.metadata() or {}
    aside = path.with_suffix(".new")
    save_file(load_file(path), aside, {**kept, **metadata})
    aside.replace(path)
