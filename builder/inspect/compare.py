"""A repository's engine against PyTorch, layer by layer."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from builder.checkpoint import DTYPES, load_detector, random_detector
from builder.detector import Detector
from builder.engines import EngineError
from builder.engines.eager import eager_device
from builder.engines.kinds import engine_kind
from builder.engines.tensorrt import TensorRTSettings
from builder.engines.tensorrt.child import TensorRTPython
from builder.family import DetectorConfig
from builder.inspect.difference import difference
from builder.inspect.layers import CARRIED, LayerComparison, compare_layers
from builder.inspect.marked import MarkedEngine, marked_onnx, marked_plan, marked_torch
from builder.inspect.marks import check_patterns
from builder.inspect.package import weights_of
from builder.pipeline.export import InputSpec, export_detector
from builder.pipeline.manifest import (
    check_described,
    device_of,
    engine_file,
    load_engine,
    spec_of,
    variant_of,
    window_attention_of,
)
from builder.pipeline.samples import image_paths, sample_images
from builder.pipeline.verify import fit
from builder.precision import Precision
from builder.reading.checkpoint_file import digest
from serving.errors import CodetrError
from serving.manifest import check_files, read_manifest

SAMPLES = 2  # images, where none is asked for
EVERYTHING = ("*",)

Batches = list[tuple[str, NDArray[np.uint8], NDArray[np.int32]]]
Stage = Callable[[str], AbstractContextManager[object]]


def compare_repository(
    repository: Path,
    name: str,
    weights: Path | None,
    *,
    built_from: Path | None = None,
    images: Path | None = None,
    count: int = SAMPLES,
    modules: Sequence[str] = EVERYTHING,
    as_built: bool = False,
    python: Path | None = None,
    stage: Stage = lambda name: nullcontext(),
) -> LayerComparison:
    """Compare the layers of a repository's engine with those of the PyTorch detector of `weights`.

    An engine that cannot be opened, a torch package or a plan, is made again with marked outputs.

    Args:
        repository: what `codetr build` wrote. That a file is not the one that was built is noted, not refused.
        name: of the engine.
        weights: the reference's checkpoint; None where the engine has random weights.
        built_from: the checkpoint that an engine is made from again; None for `weights`.
        images: a picture or a folder of them; None for generated shapes.
        count: of images.
        modules: patterns of those whose outputs are compared, as the shell's.
        as_built: run the plan itself, by the outputs that it was built to keep.
        python: with TensorRT, for a plan; None for the environment's, or this one.
        stage: shows a stage while it runs.

    Raises:
        CodetrError: something is missing, or the engine cannot be made or run.
    """
    _check_images(images)
    check_described(repository, name)
    manifest = read_manifest(repository, name)
    kind, variant, spec = engine_kind(manifest["engine"]), variant_of(manifest), spec_of(manifest)
    precision: str = manifest["precision"]
    quantised = precision not in DTYPES
    around = cast(Precision, ("float32" if kind.name == "onnx" else "float16") if quantised else precision)
    if as_built and kind.name != "tensorrt":
        raise CodetrError(f"the engine {name} is of kind {kind.name}; only a plan can keep marked outputs")
    if quantised and kind.name != "onnx":
        raise CodetrError(
            f"the engine {name} is quantised to {precision}, and cannot be made again with marked outputs; compare the "
            "onnx engine, whose file can be opened"
        )
    notes = [*_notes_on_files(repository, name), *_notes_on_weights(name, manifest, weights, built_from)]
    own: list[str] = []  # what is told of a package's own weights
    with stage("load weights"):
        reference = _detector(variant, weights, manifest)
        source = reference if built_from is None else _detector(variant, built_from, manifest)
    check_patterns(reference, modules)
    batch = 1 if spec.is_dynamic else spec.max_batch_size
    batches = _batches(variant, spec, images, count, batch)
    if images is not None and images.is_dir() and len(batches) < count:
        notes.append(f"{images} holds {len(batches)} images, fewer than {count}")
    with tempfile.TemporaryDirectory(prefix="codetr-compare-") as folder:
        with stage("mark outputs"):
            engine = _marked(
                repository, name, manifest, source, batch, modules, Path(folder), own, as_built=as_built, python=python
            )
        place = eager_device("cpu" if kind.name == "onnx" else device_of(manifest))
        half = None if around == "float32" else _half(reference, around).to(place)
        with stage("compare"):
            comparison = compare_layers(reference.to(place), engine, batches, precision, half)
        unmarked, note = (
            (None, None) if engine.is_the_engine else _unmarked(repository, name, manifest, engine, batches)
        )
    comparison.unmarked = unmarked
    comparison.notes = [*notes, *own, *([note] if note else [])]
    return comparison


def _check_images(images: Path | None) -> None:
    """Refuse before anything is loaded what is neither a picture nor a folder of them."""
    if images is None or images.is_file():
        return
    if not images.exists():
        raise CodetrError(f"there is nothing at {images}; name a picture or a folder of them to compare on")
    image_paths(images, "to compare on")


def _detector(variant: DetectorConfig, weights: Path | None, manifest: Mapping[str, Any]) -> Detector:
    """Return the deployed float32 detector, as every engine is made of it."""
    if weights is None:
        if manifest["weights"] is not None:
            raise CodetrError(f"give its weights: the engine was built from {manifest['weights']['file']}")
        return random_detector(variant, manifest["seed"]).deploy()
    return load_detector(variant, weights).deploy()


def _half(detector: Detector, precision: Precision) -> Detector:
    return copy.deepcopy(detector).set_precision(DTYPES[precision])


def _notes_on_files(repository: Path, name: str) -> list[str]:
    try:
        check_files(repository, name)
    except CodetrError as error:
        return [str(error)]
    return []


def _notes_on_weights(
    name: str, manifest: Mapping[str, Any], weights: Path | None, built_from: Path | None
) -> list[str]:
    known, given = manifest["weights"], built_from or weights
    if known is None or given is None or not given.is_file() or digest(given) == known["sha256"]:
        return []
    note = f"the engine {name} was built from {known['file']} (SHA-256 {known['sha256'][:12]}...), not from {given}"
    if manifest["engine"] != "tensorrt":
        return [note]
    return [f"{note}; since it is made again from {given.name}, give what it was built from"]


def _batches(variant: DetectorConfig, spec: InputSpec, images: Path | None, count: int, batch: int) -> Batches:
    """Return each image as a batch: of copies, where the engine takes several at once only."""
    if count < 1:
        raise CodetrError(f"{count} samples are too few; expected at least 1")
    samples = sample_images(variant.class_names or (), images, most=count)
    pixels, sizes = fit(samples.images, spec.height, spec.width, variant.rules.pixels)
    return [
        (name, np.repeat(pixels[i : i + 1], batch, 0), np.repeat(sizes[i : i + 1], batch, 0))
        for i, name in enumerate(samples.names)
    ]


def _marked(
    repository: Path,
    name: str,
    manifest: Mapping[str, Any],
    source: Detector,
    batch: int,
    modules: Sequence[str],
    folder: Path,
    notes: list[str],
    *,
    as_built: bool,
    python: Path | None,
) -> MarkedEngine:
    kind, spec, precision = engine_kind(manifest["engine"]), spec_of(manifest), manifest["precision"]
    file = engine_file(repository, name, kind)
    if not file.is_file():
        raise CodetrError(f"{file} is missing; build the repository again")
    if kind.name == "onnx":
        return marked_onnx(file, folder, modules)
    place = device_of(manifest)
    if kind.name == "torch":
        if place == "cuda" and not torch.cuda.is_available():
            raise EngineError(f"{file} was compiled for an NVIDIA GPU; PyTorch finds none here")
        one = InputSpec(spec.height, spec.width, batch, dynamic_batch=False)
        detector = _half(source, precision)
        notes.append(_take_weights(file, detector))
        return marked_torch(detector.to(place), one, modules)
    program = export_detector(_half(source, precision), spec)
    return marked_plan(
        program,
        spec,
        precision,
        folder,
        built=file if as_built else None,
        python=None if python is None else TensorRTPython(python),
        settings=TensorRTSettings(frontend="onnx", python=python, window_attention=window_attention_of(manifest)),
        patterns=modules,
    )


def _take_weights(file: Path, detector: Detector) -> str:
    """Give the detector the weights that lie in a package; return what has to be said of them."""
    expected = {**dict(detector.named_parameters()), **dict(detector.named_buffers())}
    found = weights_of(file, expected)
    if not found:
        return "the package's own weights could not be read, so it was made again from the checkpoint's"
    changed = [name for name, weight in found.items() if not torch.equal(weight, expected[name].cpu())]
    for name in changed:
        expected[name].data.copy_(found[name])
    text = f"it was made again from the package's own weights, {len(found)} of {len(expected)}"
    if not changed:
        return text
    return f"{text}, of which {len(changed)} are not the checkpoint's: {', '.join(changed[:5])}" + (
        ", ..." if len(changed) > 5 else ""
    )


def _unmarked(
    repository: Path, name: str, manifest: Mapping[str, Any], engine: MarkedEngine, batches: Batches
) -> tuple[float | None, str | None]:
    """Return how far the repository's own engine is from the marked one, and what that means if it is far."""
    _, images, sizes = batches[0]
    try:
        own = load_engine(repository, name, manifest)(images, sizes)
    except EngineError as error:
        return None, f"the repository's own engine did not run here, so that only the marked one was compared: {error}"
    marked = engine.run(images, sizes)
    found = difference(torch.from_numpy(marked["scores"]).float(), torch.from_numpy(own.scores).float()).judged
    if found <= CARRIED[manifest["precision"]]:
        return found, None
    return found, (
        f"the scores of the repository's own engine are {found:.1e} from those of {engine.what}: what is wrong with it "
        "is not in the marked one. It was built from other weights or by other versions, or the compiler fuses "
        "something wrongly that the marks keep apart"
    )
