"""Repeats the verification of a repository that exists."""

from __future__ import annotations

import importlib
from pathlib import Path

from builder.build import ENGINES, compare_engine, sample_images
from builder.checkpoint import load_detector, random_detector
from builder.export import InputSpec
from builder.manifest import variant_of
from builder.verify import Verification
from serving.contract import DETECTOR
from serving.errors import CodetrError
from serving.manifest import check_files, read_manifest, sha256


def verify_repository(repository: Path, weights: Path | None, verify_images: Path | None = None) -> Verification:
    """Compare a repository's engine with the detector of `weights` again, on `verify_images` or generated shapes.

    Args:
        repository: what `codetr build` wrote.
        weights: the checkpoint it was built from; None if it was built with random weights.
        verify_images: folder of images.

    Raises:
        CodetrError: a file of the repository is not the one that was built, the weights are others than those, or
            the engine does not reproduce the detector.
    """
    check_files(repository)
    manifest = read_manifest(repository)
    _check_weights(manifest["weights"], weights)
    variant = variant_of(manifest)
    detector = random_detector(variant, manifest["seed"]) if weights is None else load_detector(variant, weights)
    spec = InputSpec(manifest["height"], manifest["width"], manifest["max_batch_size"], manifest["dynamic_batch"])
    if manifest["engine"] not in ENGINES:
        raise CodetrError(f"engine {manifest['engine']!r} is not known; expected {', '.join(ENGINES)}")
    engine = importlib.import_module(f"builder.engines.{manifest['engine']}")
    run = engine.load(repository / DETECTOR / "1" / engine.FILE_NAME, spec)
    return compare_engine(detector.to(engine.device()), run, sample_images(verify_images), spec, manifest["precision"])


def _check_weights(built_from: dict[str, str] | None, weights: Path | None) -> None:
    if built_from is None and weights is not None:
        raise CodetrError("the repository was built with random weights; leave --weights out")
    if built_from is None:
        return
    if weights is None:
        raise CodetrError(f"give --weights: the repository was built from {built_from['file']}")
    if not weights.is_file():
        raise CodetrError(f"no checkpoint at {weights}")
    actual = sha256(weights)
    if actual != built_from["sha256"]:
        raise CodetrError(
            f"{weights} is not what the repository was built from: its SHA-256 is {actual}, the manifest says "
            f"{built_from['sha256']}"
        )
