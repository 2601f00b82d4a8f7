"""Repeats the verification of a repository that exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from builder.build import compare_engine, engine_module
from builder.checkpoint import load_detector, random_detector
from builder.export import InputSpec
from builder.manifest import check_described, variant_of
from builder.report import write_report
from builder.samples import sample_images
from builder.verify import Verification
from serving.contract import DETECTOR, model_name
from serving.errors import CodetrError
from serving.manifest import check_files, check_machine, engine_names, read_manifest, sha256


def chosen_names(repository: Path, name: str | None = None) -> list[str]:
    """Return the names of the engines to verify: `name`, or all that the repository has.

    Raises:
        CodetrError: it has none, or none of that name.
    """
    names = engine_names(repository)
    if not names:
        raise CodetrError(f"no repository at {repository}; write one with `codetr build ... --repository {repository}`")
    if name is not None and name not in names:
        raise CodetrError(f"{repository} has no engine {name!r}; it has {', '.join(names)}")
    return names if name is None else [name]


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
    file = _find_weights(name, manifest["weights"], weights)
    variant = variant_of(manifest)
    samples = sample_images(variant.class_names or (), verify_images, verify_annotations)
    detector = random_detector(variant, manifest["seed"]) if file is None else load_detector(variant, file)
    spec = InputSpec(manifest["height"], manifest["width"], manifest["max_batch_size"], manifest["dynamic_batch"])
    engine = engine_module(manifest["engine"])
    run = engine.load(repository / model_name(DETECTOR, name) / "1" / engine.FILE_NAME, spec)
    comparison = compare_engine(detector.to(run.device), run, samples, spec, manifest["precision"])
    if report is None:
        return comparison.check("; --report FOLDER shows where")
    return comparison.check(f"; see {write_report(report, comparison, samples, manifest)}")


def _find_weights(name: str, built_from: Mapping[str, str] | None, weights: Sequence[Path]) -> Path | None:
    """Return the checkpoint that an engine was built from, by its hash; None stands for random weights."""
    if built_from is None:
        return None
    if not weights:
        raise CodetrError(f"give --weights: the engine {name} was built from {built_from['file']}")
    missing = [path for path in weights if not path.is_file()]
    if missing:
        raise CodetrError(f"no checkpoint at {missing[0]}; the engine {name} was built from {built_from['file']}")
    hashes = {path: sha256(path) for path in weights}
    found = next((path for path, digest in hashes.items() if digest == built_from["sha256"]), None)
    if found is None:
        given = ", ".join(f"{path} (SHA-256 {digest})" for path, digest in hashes.items())
        raise CodetrError(
            f"the engine {name} was not built from {given} but from {built_from['file']} (SHA-256 "
            f"{built_from['sha256']}); give that one with --weights"
        )
    return found
