"""Repeats the verification of a repository that exists."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from builder.checkpoint import load_detector, random_detector
from builder.engines.eager import eager_device
from builder.family import DetectorConfig
from builder.pipeline.build import compare_engine
from builder.pipeline.manifest import check_described, load_engine, spec_of, variant_of
from builder.pipeline.report import place_report, write_report
from builder.pipeline.samples import sample_images
from builder.pipeline.verify import Verification, limits_of
from builder.reading.checkpoint_file import digest
from serving.errors import CodetrError
from serving.manifest import (
    check_files,
    check_machine,
    engine_names,
    no_repository,
    read_manifest,
    unknown_engine,
)


def chosen_names(repository: Path, name: str | None = None) -> list[str]:
    """Return the names of the engines to verify: `name`, or all that the repository has.

    Raises:
        CodetrError: it has none, or none of that name.
    """
    names = engine_names(repository)
    if not names:
        raise no_repository(repository)
    if name is not None and name not in names:
        raise unknown_engine(repository, name, names)
    return names if name is None else [name]


# What a variant says beside its network.
_BESIDE = ("name", "input_size", "checkpoint", "box_ap", "epochs", "rules")


def check_network(repository: Path, name: str, variant: DetectorConfig) -> None:
    """Check that an engine was built from the network that `variant` describes.

    Class names are compared where `variant` has any: else they are the checkpoint's.

    Raises:
        CodetrError: it was not; the message names the settings that differ.
    """
    check_described(repository, name)
    different = _differences(variant_of(read_manifest(repository, name)), variant)
    if different:
        raise CodetrError(
            f"the engine {name} of {repository} was built from another network than {variant.name}: "
            f"{'; '.join(different)}; give the config it was built from, or build it again"
        )


def _differences(built: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Return the settings of two networks that differ, with both values."""
    found = []
    for field in fields(built):
        if field.name in _BESIDE:
            continue
        ours, other = getattr(built, field.name), getattr(wanted, field.name)
        if field.name == "class_names" and other is None:
            continue
        if is_dataclass(ours) and type(ours) is type(other):
            found += _differences(ours, other, f"{prefix}{field.name}.")
        elif ours != other and field.name == "class_names":
            found.append(
                f"class_names differ in {', '.join(sorted(set(ours or ()) ^ set(other))[:8]) or 'their order'}"
            )
        elif ours != other:
            found.append(f"{prefix}{field.name} is {ours}, expected {other}")
    return found


def verify_repository(
    repository: Path,
    name: str,
    weights: Sequence[Path] = (),
    verify_images: Path | None = None,
    verify_annotations: Path | None = None,
    report: Path | None = None,
) -> Verification:
    """Compare an engine with the detector of its weights again, on `verify_images` or generated shapes.

    Args:
        repository: what `codetr build` wrote.
        name: of the engine.
        weights: checkpoints, among them the one it was built from, unless it was built with random weights.
        verify_images: folder of images.
        verify_annotations: COCO annotations of these images.
        report: folder for the report; none is written if not given.

    Raises:
        CodetrError: a file of the repository is not the one that was built, the engine was built for another machine,
            the weights are others than those, or the engine does not reproduce the detector.
    """
    check_files(repository, name)
    check_described(repository, name)
    manifest = read_manifest(repository, name)
    check_machine(manifest, f"the engine {name} in {repository}")
    checkpoint = _find_weights(name, manifest["weights"], weights)
    variant = variant_of(manifest)
    samples = sample_images(variant.class_names or (), verify_images, verify_annotations)
    detector = random_detector(variant, manifest["seed"]) if checkpoint is None else load_detector(variant, checkpoint)
    spec = spec_of(manifest)
    run = load_engine(repository, name, manifest)
    limits = limits_of(manifest["precision"], manifest.get("quantisation"))
    comparison = compare_engine(detector.to(eager_device(run.device)), run, samples, spec, limits)
    if report is None:
        return comparison.check("; a report shows where")
    with tempfile.TemporaryDirectory(prefix="codetr-verify-") as folder:
        written = write_report(Path(folder, "report"), comparison, samples, manifest)
        place = place_report(written.parent, report)
    return comparison.check(f"; see {place / written.name}")


def check_weights(repository: Path, names: Sequence[str], weights: Sequence[Path]) -> None:
    """Refuse a checkpoint that none of the engines `names` was built from: nothing would be compared with it.

    Where an engine lacks its own, `verify_repository` says so.
    """
    if not weights:
        return
    origins = {name: read_manifest(repository, name).get("weights") for name in names}
    expected = {origin["sha256"] for origin in origins.values() if origin}
    given = {path: digest(path) for path in weights if path.exists()}
    unused = [path for path, found in given.items() if found not in expected]
    if unused and expected <= set(given.values()):
        told = ", ".join(
            f"{name} from {origin['file'] if origin else 'random weights'}" for name, origin in origins.items()
        )
        raise CodetrError(f"no engine was built from {unused[0]} (of {repository}: {told}); leave it out")


def _find_weights(name: str, built_from: Mapping[str, str] | None, weights: Sequence[Path]) -> Path | None:
    """Return the checkpoint that an engine was built from, by its hash; None stands for random weights."""
    if built_from is None:
        return None
    if not weights:
        raise CodetrError(f"give its weights: the engine {name} was built from {built_from['file']}")
    missing = [path for path in weights if not path.exists()]
    if missing:
        raise CodetrError(f"no checkpoint at {missing[0]}; the engine {name} was built from {built_from['file']}")
    hashes = {path: digest(path) for path in weights}
    found = next((path for path, digest in hashes.items() if digest == built_from["sha256"]), None)
    if found is None:
        given = ", ".join(f"{path} (SHA-256 {digest})" for path, digest in hashes.items())
        raise CodetrError(
            f"the engine {name} was not built from {given} but from {built_from['file']} (SHA-256 "
            f"{built_from['sha256']}); give that one"
        )
    return found
