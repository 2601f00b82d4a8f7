"""Which engines to measure: new ones of several sizes, or those of a repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builder.build import check_precision, engine_module
from builder.checkpoint import Precision
from builder.co_dino.config import Variant
from builder.co_dino.levels import check_limits
from builder.export import InputSpec
from builder.manifest import variant_of
from builder.recheck import chosen_names
from serving.contract import DETECTOR, ENSEMBLE, model_name
from serving.errors import CodetrError
from serving.manifest import check_files, check_versions, read_manifest, sha256

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Target:
    """One engine to measure beside the PyTorch detector it comes from."""

    variant: Variant
    spec: InputSpec  # its largest batch is measured
    engine: str
    precision: Precision
    repository: Path
    name: str = ENSEMBLE  # of the engine in the repository
    seed: int = 0  # of random weights
    built_from: str | None = None  # SHA-256 of the weights of an engine that exists
    exists: bool = False  # else it is built

    @property
    def file(self) -> Path:
        """The engine's file."""
        return self.repository / model_name(DETECTOR, self.name) / "1" / engine_module(self.engine).FILE_NAME


def new_targets(
    variant: Variant,
    sizes: Sequence[tuple[int, int]],
    engine: str,
    precision: Precision | None,
    batch: int,
    builds: Path,
) -> list[Target]:
    """Return the engines to build for each size (width, height), each into a folder of its own in `builds`.

    Without `precision` an engine has float16 on a GPU and float32 on a CPU.

    Raises:
        CodetrError: the engine does not exist, or not in that precision or size.
    """
    chosen: Precision = precision or ("float16" if engine_module(engine).device() == "cuda" else "float32")
    check_precision(engine, chosen)
    for width, height in sizes:
        check_limits(variant, height, width, tensorrt=engine == "tensorrt")
    return [
        Target(
            variant,
            InputSpec(height, width, batch, dynamic_batch=False),
            engine,
            chosen,
            builds / f"{variant.name}-{engine}-{chosen}-{width}x{height}-batch{batch}",
        )
        for width, height in sizes
    ]


def existing_targets(repository: Path, name: str | None = None) -> list[Target]:
    """Return the engines of a repository, or the one called `name`, each at its largest batch.

    Raises:
        CodetrError: there is none, its files are not those that were built, or it was built for another machine.
    """
    return [_existing(repository, each) for each in chosen_names(repository, name)]


def _existing(repository: Path, name: str) -> Target:
    check_files(repository, name)
    check_versions(repository, name)
    manifest = read_manifest(repository, name)
    return Target(
        variant=variant_of(manifest),
        spec=InputSpec(
            manifest["height"], manifest["width"], manifest["max_batch_size"], manifest.get("dynamic_batch", True)
        ),
        engine=manifest["engine"],
        precision=manifest["precision"],
        repository=repository,
        name=name,
        seed=manifest["seed"] or 0,
        built_from=(manifest["weights"] or {}).get("sha256"),
        exists=True,
    )


def check(targets: Sequence[Target], weights: Path | None, device: str | None) -> str:
    """Return where the engines run, "cuda" or "cpu".

    Raises:
        CodetrError: not all of them on `device`, the checkpoint `weights` is not there, or an engine was built from
            another.
    """
    found = {target.engine: engine_module(target.engine).device() for target in targets}
    for engine, actual in found.items():
        if device is not None and actual != device:
            raise CodetrError(
                f"the {engine} engine runs on {actual} here, not on {device}; a GPU needs a CUDA build of PyTorch, and "
                "CUDA_VISIBLE_DEVICES= hides it"
            )
    if len(set(found.values())) > 1:
        raise CodetrError("the repository has engines for the CPU and for the GPU; choose one with --name")
    if weights is not None:
        _check_weights(targets, weights)
    return next(iter(found.values()))


def _check_weights(targets: Sequence[Target], weights: Path) -> None:
    if not weights.is_file():
        raise CodetrError(f"no checkpoint at {weights}")
    existing = [target for target in targets if target.exists]
    digest = sha256(weights) if existing else None
    for target in existing:
        if target.built_from != digest:
            raise CodetrError(
                f"the engine {target.name} of {target.repository} was not built from {weights}; give its own weights, "
                "or --random-weights to measure speed alone"
            )
