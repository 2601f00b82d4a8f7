"""Which engines to measure: new ones of several sizes, or those of a repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from builder.engines import Device
from builder.engines.kinds import engine_kind
from builder.families import family_of
from builder.family import DetectorConfig
from builder.pipeline.export import InputSpec
from builder.pipeline.manifest import device_of, engine_file, spec_of, variant_of
from builder.pipeline.recheck import chosen_names
from builder.precision import EnginePrecision, Precision
from builder.reading.checkpoint_file import digest
from perf.engine.published import sizes_to_measure
from serving.contract import ENSEMBLE
from serving.errors import CodetrError
from serving.manifest import check_files, check_versions, read_manifest


@dataclass(frozen=True)
class Target:
    """One engine to measure beside the PyTorch detector it comes from."""

    variant: DetectorConfig
    spec: InputSpec  # its largest batch is measured
    engine: str
    precision: EnginePrecision
    repository: Path
    device: Device  # it is built for
    name: str = ENSEMBLE  # of the engine in the repository
    seed: int = 0  # of random weights
    built_from: str | None = None  # SHA-256 of the weights of an engine that exists
    exists: bool = False  # else it is built

    @property
    def around(self) -> Precision:
        """The precision of what is not quantised."""
        return engine_kind(self.engine).around(self.precision)

    @property
    def file(self) -> Path:
        """The engine's file."""
        return engine_file(self.repository, self.name, engine_kind(self.engine))


def new_targets(
    variants: Sequence[DetectorConfig],
    sizes: Sequence[tuple[int, int]],
    engine: str,
    precision: EnginePrecision | None,
    batches: Sequence[int],
    builds: Path,
) -> list[Target]:
    """Return the engines to build of each variant, size and batch, each into a folder of its own in `builds`.

    Args:
        variants: the networks.
        sizes: (width, height) in pixels of all of them; if empty, each network's published or usual ones.
        engine: kind of engine.
        precision: of the engines; None for float16 on a GPU and float32 on a CPU.
        batches: numbers of images in one inference.
        builds: folder of the engines' repositories.

    Raises:
        CodetrError: the engine does not exist, or not in that precision or size.
    """
    kind = engine_kind(engine)
    device = kind.module.device()
    chosen: EnginePrecision = precision or ("float16" if device == "cuda" else "float32")
    kind.check_precision(chosen)
    cases = [
        (variant, InputSpec(height, width, batch, dynamic_batch=False))
        for variant in variants
        for width, height in sizes or sizes_to_measure(variant)
        for batch in batches
    ]
    for variant, spec in cases:
        family_of(variant).check_size(variant, spec.height, spec.width, engine == "tensorrt")
    return [
        Target(
            variant,
            spec,
            engine,
            chosen,
            builds / f"{variant.name}-{engine}-{chosen}-{spec.width}x{spec.height}-batch{spec.max_batch_size}",
            device,
        )
        for variant, spec in cases
    ]


def existing_targets(repository: Path, name: str | None = None, batches: Sequence[int] = ()) -> list[Target]:
    """Return the engines of a repository, or the one called `name`, at every batch.

    Args:
        repository: a folder written by `codetr build`.
        name: of one engine.
        batches: numbers of images in one inference; if empty, each engine's largest.

    Raises:
        CodetrError: there is none, its files are not those that were built, it was built for another machine, or it
            does not take one of the batches.
    """
    engines = [_existing(repository, each) for each in chosen_names(repository, name)]
    return [_of_batch(engine, batch) for engine in engines for batch in batches or [engine.spec.max_batch_size]]


def _of_batch(target: Target, batch: int) -> Target:
    largest = target.spec.max_batch_size
    if batch > largest or (batch < largest and not target.spec.is_dynamic):
        takes = f"1 to {largest}" if target.spec.is_dynamic else f"{largest}"
        raise CodetrError(f"the engine {target.name} of {target.repository} takes batches of {takes}, not of {batch}")
    return replace(target, spec=replace(target.spec, max_batch_size=batch))


def _existing(repository: Path, name: str) -> Target:
    check_files(repository, name)
    check_versions(repository, name)
    manifest = read_manifest(repository, name)
    return Target(
        variant=variant_of(manifest),
        spec=spec_of(manifest),
        engine=manifest["engine"],
        precision=manifest["precision"],
        repository=repository,
        device=device_of(manifest),
        name=name,
        seed=manifest["seed"] or 0,
        built_from=(manifest["weights"] or {}).get("sha256"),
        exists=True,
    )


def check(targets: Sequence[Target], weights: Path | None, device: str | None) -> Device:
    """Return where the engines run, "cuda" or "cpu".

    Raises:
        CodetrError: not all of them on `device`, the checkpoint `weights` is not there, or an engine was built from
            another.
    """
    found = {engine_kind(target.engine).name: target.device for target in targets}
    for engine, actual in found.items():
        if device is not None and actual != device:
            raise CodetrError(
                f"the {engine} engine runs on {actual} here, not on {device}; a GPU needs a CUDA build of PyTorch, and "
                "CUDA_VISIBLE_DEVICES= hides it"
            )
    if len(set(found.values())) > 1:
        raise CodetrError("the repository has engines for the CPU and for the GPU; choose one by its name")
    if weights is not None:
        _check_weights(targets, weights)
    return next(iter(found.values()))


def _check_weights(targets: Sequence[Target], weights: Path) -> None:
    if not weights.exists():
        raise CodetrError(f"no checkpoint at {weights}")
    existing = [target for target in targets if target.exists]
    found = digest(weights) if existing else None
    for target in existing:
        if target.built_from != found:
            raise CodetrError(
                f"the engine {target.name} of {target.repository} was not built from {weights}; give its own weights, "
                "or random ones to measure speed alone"
            )
