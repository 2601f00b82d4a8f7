"""Engines that put out what their modules return, beside the candidates: of ONNX files, torch packages and plans."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper
from torch import Tensor
from torch.export import ExportedProgram

from builder.detector import Detector
from builder.engines import Device
from builder.engines import torch as torch_engine
from builder.engines.onnx import read_graph
from builder.engines.tensorrt import TensorRTSettings, onnx_frontend, plugin_library, plugin_onnx, route
from builder.engines.tensorrt.child import TensorRTPython
from builder.engines.tensorrt.plans import read_plan
from builder.inspect.marks import Marks, mark_model, mark_program, names_of
from builder.inspect.onnx_file import given_to
from builder.operators.cuda import load_cuda_operator
from builder.pipeline.export import (
    OUTPUT_NAMES,
    InputSpec,
    decompose_attention,
    decompose_operator,
    device_of,
    export_detector,
    inputs_of,
    uses_operator,
)
from builder.precision import Precision
from model_repository.torch_runner import float32_products

Arrays = dict[str, NDArray[Any]]
MOST_BYTES = 2**31  # of outputs at once


@dataclass(frozen=True)
class MarkedEngine:
    """An engine whose layers can be seen."""

    marks: Marks
    run: Callable[[NDArray[np.uint8], NDArray[np.int32]], Arrays]  # all outputs by name, the candidates among them
    what: str  # a sentence that says what was run
    is_the_engine: bool  # whether that is the repository's own file, if for its outputs


def marked_onnx(
    file: Path, folder: Path, patterns: Sequence[str] = ("*",), most_bytes: int = MOST_BYTES
) -> MarkedEngine:
    """Return an ONNX file's engine, of a copy with marked outputs, in ONNX Runtime on the CPU.

    Args:
        file: the engine.
        folder: for the copy, and for outputs that take more than `most_bytes`: they come in several runs.
        patterns: of modules.
        most_bytes: of outputs in memory.

    Raises:
        EngineError: a pattern matches no module.
    """
    model = read_graph(file)
    marks = mark_model(model, patterns)
    groups = output_groups(model, most_bytes)
    sessions: dict[int, Any] = {}

    def session(index: int) -> Any:
        if index not in sessions:
            sessions.clear()  # one at a time: each has the weights
            copy = folder / "marked.onnx"
            onnx.save(_with_outputs(model, groups[index]), copy)
            sessions[index] = onnxruntime.InferenceSession(str(copy), providers=["CPUExecutionProvider"])
        return sessions[index]

    def run(images: NDArray[np.uint8], sizes: NDArray[np.int32]) -> Arrays:
        found: Arrays = {}
        for index, names in enumerate(groups):
            given = given_to(session(index), images, sizes)
            arrays = dict(zip(names, session(index).run(names, given), strict=True))
            found |= arrays if len(groups) == 1 else _on_disk(arrays, folder, index)
        return found

    what = "a copy of the ONNX file whose modules' outputs are outputs of the graph, in ONNX Runtime"
    return MarkedEngine(marks, run, what, is_the_engine=False)


def output_groups(model: ModelProto, most_bytes: int) -> list[list[str]]:
    """Return a model's outputs, in their order, in groups of at most `most_bytes` for one image or of one output."""
    groups: list[list[str]] = [[]]
    size = 0
    for value in model.graph.output:
        type_ = value.type.tensor_type
        sides = [dim.dim_value or 1 for dim in type_.shape.dim]  # an open side is the batch
        needed = math.prod(sides) * helper.tensor_dtype_to_np_dtype(type_.elem_type).itemsize
        if groups[-1] and size + needed > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(value.name)
        size += needed
    return groups


def _with_outputs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return the model with some of its outputs only."""
    copy = ModelProto()
    copy.CopyFrom(model)
    kept = [value for value in model.graph.output if value.name in set(names)]
    del copy.graph.output[:]
    copy.graph.output.extend(kept)
    return copy


def _on_disk(arrays: Arrays, folder: Path, group: int) -> Arrays:
    """Return the arrays as files, which are read where they are needed."""
    found: Arrays = {}
    for i, (name, array) in enumerate(arrays.items()):
        path = folder / f"{group}-{i}.npy"
        path.unlink(missing_ok=True)  # an earlier image's, which may still be open
        np.save(path, array)
        found[name] = np.load(path, mmap_mode="c")
    return found


def marked_torch(detector: Detector, spec: InputSpec, patterns: Sequence[str] = ("*",)) -> MarkedEngine:
    """Return an engine that AOTInductor makes of the same program with marked outputs, compiled here and now.

    Args:
        detector: deployed, in the engine's precision, on the engine's device.
        spec: of one batch.
        patterns: of modules.

    Raises:
        EngineError: it could not be compiled.
    """
    program = export_detector(detector, spec)
    place, needs_operator, inputs = device_of(program), uses_operator(program), inputs_of(program)
    torch_engine.check(needs_operator)
    if place == "cuda" and needs_operator:
        load_cuda_operator()
    marked, marks = mark_program(program if place == "cuda" else decompose_operator(program), patterns)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, "marked.pt2")
        torch_engine.compile_package(marked, package, place)
        model = torch._inductor.aoti_load_package(str(package), run_single_threaded=True)
    what = "the same program with its modules' outputs marked, compiled by AOTInductor here: a package cannot be opened"
    return MarkedEngine(marks, torch_run(model, marks, place, len(inputs)), what, is_the_engine=False)


def torch_run(
    model: Callable[..., Any], marks: Marks, place: Device, inputs: int
) -> Callable[[NDArray[np.uint8], NDArray[np.int32]], Arrays]:
    """Return a marked program, compiled or not, as a function of `inputs` arrays."""
    names = [*OUTPUT_NAMES, *names_of(marks)]

    def run(images: NDArray[np.uint8], sizes: NDArray[np.int32]) -> Arrays:
        given = [torch.from_numpy(array).to(place) for array in (images, sizes)][:inputs]
        with torch.inference_mode(), float32_products(tf32=False):
            made = model(*given)
        return {name: _array(tensor) for name, tensor in zip(names, made, strict=True)}

    return run


def _array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def marked_plan(
    program: ExportedProgram,
    spec: InputSpec,
    precision: Precision,
    folder: Path,
    *,
    built: Path | None = None,
    python: TensorRTPython | None = None,
    settings: TensorRTSettings | None = None,
    patterns: Sequence[str] = ("*",),
) -> MarkedEngine:
    """Return a plan with marked outputs in the interpreter that has TensorRT.

    Args:
        program: of the engine's precision, on the CPU.
        spec: of the plan.
        precision: of the plan.
        folder: for files that are made, logs among them.
        built: a plan that was built with marked modules, which is run as it is; None builds one of the same ONNX.
        python: with TensorRT.
        settings: to build with.
        patterns: of the modules.

    Raises:
        EngineError: TensorRT is missing, or cannot build or run the plan; or `built` keeps nothing.
    """
    settings = settings or TensorRTSettings()
    python = python or route.python_of(settings)
    program = decompose_attention(program, window_plugin=settings.window_attention == "plugin")
    plugin = plugin_library() if uses_operator(program) else None
    file = folder / plugin_onnx.FILE_NAME
    onnx_frontend.write_onnx(program, file, route.version_of(python))
    model = onnx.load(file)
    marks = mark_model(model, patterns)
    plan = built
    if plan is None:
        onnx.save(model, file)
        plan = folder / "marked.plan"
        onnx_frontend.build_plan(file, plan, spec, precision, settings, plugin=plugin, python=python, inspect=False)

    def run(images: NDArray[np.uint8], sizes: NDArray[np.int32]) -> Arrays:
        return read_plan(plan, [(images, sizes)], plugin=plugin, python=python)[0]

    if built is None:
        what = (
            "a plan of the same ONNX with its modules' outputs marked, built here: TensorRT fuses nothing across them"
        )
    else:
        what = "the repository's plan itself, by the outputs that it was built to keep"
    return MarkedEngine(marks, run, what, is_the_engine=built is not None)
