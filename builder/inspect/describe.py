"""What a repository's engine is made of."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from builder.checkpoint import DTYPES, load_detector
from builder.engines import loading
from builder.engines import torch as torch_engine
from builder.engines.kinds import engine_kind
from builder.engines.scopes import modules_of
from builder.engines.tensorrt import TensorRTSettings, onnx_frontend, plans, route
from builder.engines.tensorrt.child import TensorRTPython
from builder.inspect.anatomy import Anatomy, median_ms
from builder.inspect.onnx_file import describe_onnx
from builder.inspect.package import describe_package, kernel_times
from builder.inspect.plan_file import describe_plan
from builder.operators.cuda import LIBRARY_PATTERN, load_cuda_operator
from builder.pipeline.export import (
    INPUT_NAMES,
    OUTPUT_NAMES,
    InputSpec,
    decompose_attention,
    decompose_operator,
    export_detector,
)
from builder.pipeline.manifest import (
    check_described,
    device_of,
    engine_file,
    spec_of,
    variant_of,
    window_attention_of,
)
from builder.pipeline.samples import sample_images
from builder.pipeline.verify import fit
from model_repository.torch_runner import TorchRunner
from serving.contract import PLUGIN_LIBRARY
from serving.errors import CodetrError
from serving.manifest import read_manifest

RUNS = 10  # timed inferences

Stage = Callable[[str], AbstractContextManager[object]]


def describe_repository(
    repository: Path,
    name: str,
    *,
    weights: Path | None = None,
    batch: int = 1,
    runs: int = RUNS,
    python: Path | None = None,
    stage: Stage = lambda name: nullcontext(),
) -> Anatomy:
    """Return what a repository's engine is made of, with the times of its parts where they can be measured here.

    Args:
        repository: what `codetr build` wrote.
        name: of the engine.
        weights: its checkpoint. For a torch package on a CPU, whose kernels no profiler sees: the same program is
            compiled again so that one does. For a plan: its layers are told to be the detector's modules.
        batch: images of the timed inference.
        runs: timed inferences.
        python: with TensorRT, for a plan; None for the environment's, or this one.
        stage: shows a stage while it runs.

    Raises:
        CodetrError: the engine does not take that batch, is none, or does not run here.
    """
    check_described(repository, name)
    manifest = read_manifest(repository, name)
    kind, spec, variant = engine_kind(manifest["engine"]), spec_of(manifest), variant_of(manifest)
    file = engine_file(repository, name, kind)
    if not file.is_file():
        raise CodetrError(f"{file} is missing; build the repository again")
    least = 1 if spec.is_dynamic else spec.max_batch_size
    if not least <= batch <= spec.max_batch_size:
        raise CodetrError(f"batch {batch} is not one of the engine's, which are {least} to {spec.max_batch_size}")
    shapes = sample_images(variant.class_names or ())
    pixels, sizes = fit(shapes.images[:1], spec.height, spec.width, variant.rules.pixels)
    images, sizes = np.repeat(pixels, batch, 0), np.repeat(sizes, batch, 0)
    title = f"{manifest['variant']}, {kind.name} engine in {manifest['precision']}"
    title += f", {spec.height}x{spec.width}, batch {batch}"
    versions = {str(key): str(value) for key, value in manifest.get("versions", {}).items()}
    if kind.name == "onnx":
        with stage("profile"):
            return describe_onnx(file, images, sizes, runs, title, versions)
    if kind.name == "torch":
        return _package(file, manifest, images, sizes, runs, title, versions, weights, stage)
    interpreter = route.python_of(TensorRTSettings(python=python))
    plugin = file.with_name(PLUGIN_LIBRARY)
    with stage("profile"):
        told = plans.inspect_plan(
            file, images, sizes, plugin=plugin if plugin.is_file() else None, python=interpreter, runs=runs
        )
    modules: dict[str, str] = {}
    if weights is not None:
        with stage("name modules"):
            modules = _modules_of_plan(manifest, weights, interpreter)
    return describe_plan(file, told, title, versions, modules, batch)


def _package(
    file: Path,
    manifest: Mapping[str, Any],
    images: NDArray[np.uint8],
    sizes: NDArray[np.int32],
    runs: int,
    title: str,
    versions: Mapping[str, str],
    weights: Path | None,
    stage: Stage,
) -> Anatomy:
    place, spec, batch = device_of(manifest), spec_of(manifest), len(images)
    inputs = tuple(manifest.get("inputs", INPUT_NAMES))
    notes: list[str] = []
    if place == "cuda" and not torch.cuda.is_available():
        notes.append("it was compiled for an NVIDIA GPU, and PyTorch finds none here: nothing is timed")
        return describe_package(file, title, versions, inputs, OUTPUT_NAMES, batch, notes=notes)
    with stage("time"):
        runner = _runner(file, spec, place)
        total = median_ms(lambda: runner(images, sizes), runs)
    if weights is None and place == "cpu":
        notes.append(
            "no profiler sees the kernels of a package for a CPU: with its weights the same program is compiled again, "
            "so that one does"
        )
        return describe_package(file, title, versions, inputs, OUTPUT_NAMES, batch, total_ms=total, notes=notes)
    if weights is None or place == "cuda":
        with stage("profile"):
            times = kernel_times(_runner(file, spec, place).prepare(images, sizes), place, runs)
        return describe_package(file, title, versions, inputs, OUTPUT_NAMES, batch, times, total)
    with tempfile.TemporaryDirectory(prefix="codetr-inspect-") as folder:
        again = Path(folder, file.name)
        with stage("compile"):
            detector = (
                load_detector(variant_of(manifest), weights).deploy().set_precision(DTYPES[manifest["precision"]])
            )
            program = decompose_operator(export_detector(detector, spec))
            torch_engine.compile_package(program, again, place, profiled=True)
        with stage("profile"):
            times = kernel_times(_runner(again, spec, place).prepare(images, sizes), place, runs)
        notes.append("parts and times are of the same program, compiled again so that a profiler sees its kernels")
        found = describe_package(again, title, versions, inputs, OUTPUT_NAMES, batch, times, total, notes)
    return replace(found, file=str(file), file_bytes=file.stat().st_size)


def _runner(file: Path, spec: InputSpec, place: Any) -> TorchRunner:
    """Return the server's runner, without CUDA graphs."""
    library = next(file.parent.glob(LIBRARY_PATTERN), None)
    with loading(file):
        return TorchRunner(file, (spec.height, spec.width), place, library and load_cuda_operator(library))


def _modules_of_plan(manifest: Mapping[str, Any], weights: Path, python: TensorRTPython) -> dict[str, str]:
    """Return the innermost module of each node of the ONNX that a plan was made of."""
    dtype = DTYPES.get(manifest["precision"], torch.float16)  # of a quantised plan what is not
    detector = load_detector(variant_of(manifest), weights).deploy().set_precision(dtype)
    with tempfile.TemporaryDirectory(prefix="codetr-inspect-") as folder:
        path = Path(folder, "model.onnx")
        program = export_detector(detector, spec_of(manifest))
        program = decompose_attention(program, window_plugin=window_attention_of(manifest) == "plugin")
        onnx_frontend.write_onnx(program, path, route.version_of(python))
        nodes = onnx.load(path).graph.node
    return {node.name: modules[-1] for node in nodes if (modules := modules_of(node))}
