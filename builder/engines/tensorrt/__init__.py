"""TensorRT engine: the detector as a plan, deformable and window attention by our plugins.

Here stands the way through torch_tensorrt; `onnx_frontend` has the other one. The graph's own types decide the
precision. TensorRT and torch_tensorrt are imported when they are needed, so that this module can be imported, and its
checks tested, where they are not installed.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from builder.detector import Detector
from builder.engines import Device, EngineError, first_line
from builder.engines.kinds import BuiltEngine
from builder.engines.tensorrt import plans, timing_cache
from builder.engines.tensorrt.precision import check_precision
from builder.engines.tensorrt.settings import TensorRTSettings
from builder.pipeline.export import OUTPUT_NAMES, InputSpec, decompose_attention, inputs_of, uses_operator
from builder.precision import Quantised
from builder.quantise.calibration import Ranges
from builder.quantise.layers import Layer, rounding_layers
from plugin_src import SOURCES
from serving.contract import PLUGIN_LIBRARY
from serving.manifest import compute_capabilities

FP8_RELEASE = (10, 6)  # the first whose ONNX parser and builder make FP8 of convolutions and linear layers alike
PLUGIN_VARIABLE = "CODETR_PLUGIN"  # environment: the plugin's library, where it is not in build/plugin
_BUILT_PLUGIN = SOURCES.resolve().parent / "build" / "plugin" / PLUGIN_LIBRARY

# Keywords that came or went between torch_tensorrt 2.11 and 2.14: passed where the function has them. Strong typing is
# the only kind where `use_explicit_typing` is gone; the graph holds no fused attention whose bias could be dropped.
_IF_PRESENT = ("use_explicit_typing", "attn_bias_is_causal", "output_binding_names")


__all__ = [
    "TensorRTSettings",
    "build",
    "check",
    "check_quantised",
    "checked_keywords",
    "device",
    "explain",
    "export_device",
    "load",
    "output_names",
    "plugin_library",
    "profiles",
    "quantised_layers",
]


def device() -> Device:
    """Return where the engine runs.

    Raises:
        EngineError: there is no GPU, or no driver for it.
    """
    if not (torch.cuda.is_available() or compute_capabilities()):
        raise EngineError("the tensorrt engine needs an NVIDIA GPU and its driver; use the onnx engine")
    return "cuda"


def export_device(settings: TensorRTSettings | None = None) -> Device:
    """Return where `build` wants the program: on the GPU for torch_tensorrt, which computes with it."""
    from builder.engines.tensorrt import route

    return "cpu" if route.frontend_of(settings or TensorRTSettings()) == "onnx" else "cuda"


def check(uses_operator: bool, settings: TensorRTSettings | None = None) -> None:
    """Check that this machine has what `build` needs beside the GPU: TensorRT, and for the operator the plugin.

    Raises:
        EngineError: it has not.
    """
    from builder.engines.tensorrt import route

    settings = settings or TensorRTSettings()
    if route.frontend_of(settings) == "onnx":
        route.version_of(route.python_of(settings))
    else:
        for name in ("tensorrt", "torch_tensorrt"):
            _import(name)
        if not torch.cuda.is_available():
            raise EngineError(
                "torch_tensorrt needs a CUDA build of PyTorch; use the onnx frontend of the tensorrt engine"
            )
    if uses_operator:
        plugin_library()


def check_quantised(precision: Quantised, settings: TensorRTSettings | None = None) -> None:
    """Check that the frontend passes QuantizeLinear nodes on, and that this TensorRT has such numbers.

    Raises:
        EngineError: it does not.
    """
    from builder.engines.tensorrt import route

    settings = settings or TensorRTSettings()
    if route.frontend_of(settings) != "onnx":
        raise EngineError(f"{precision} plans are built by the onnx frontend; ask for that one")
    version = route.version_of(route.python_of(settings))
    if precision == "fp8" and tuple(map(int, version.split(".")[:2])) < FP8_RELEASE:
        wanted = ".".join(map(str, FP8_RELEASE))
        raise EngineError(
            f"TensorRT {version} has no fp8; {wanted} and later do, on GPUs from Ada on: use int8 or fp16"
        )


def quantised_layers(
    layers: Mapping[str, Layer], ranges: Mapping[str, Ranges], precision: Quantised
) -> dict[str, nn.Module]:
    """Return what takes the place of layers; TensorRT's zero is 0, and it rounds outputs where the next layer does."""
    return rounding_layers(layers, ranges, precision, symmetric=True, outputs=False)


def output_names() -> tuple[str, ...]:
    """Return the plan's names of boxes, scores and labels, which torch_tensorrt can choose from 2.14 on."""
    named = "output_binding_names" in _parameters(_convert_function())
    return OUTPUT_NAMES if named else tuple(f"output{i}" for i in range(len(OUTPUT_NAMES)))


def plugin_library() -> Path:
    """Return the library of `make plugin`, or the one that `$CODETR_PLUGIN` names.

    Raises:
        EngineError: there is none.
    """
    path = Path(os.environ.get(PLUGIN_VARIABLE, _BUILT_PLUGIN))
    if not path.is_file():
        raise EngineError(
            f"no TensorRT plugin at {path}; run make plugin, or set {PLUGIN_VARIABLE} to {PLUGIN_LIBRARY}"
        )
    if path.name != PLUGIN_LIBRARY:
        raise EngineError(f"{PLUGIN_VARIABLE} names {path}; the server looks for a file called {PLUGIN_LIBRARY}")
    return path


def prepared(detector: Detector) -> Detector:
    """Return what is exported for `build`: the detector as it is."""
    return detector


def build(program: ExportedProgram, path: Path, settings: TensorRTSettings | None = None) -> BuiltEngine:
    """Compile the program for this machine's GPU and write the plan to `path`.

    Raises:
        EngineError: TensorRT or the plugin is missing, an operator has no converter, the compilation failed, the
            plan's layers have other types than the program, or the timing cache is another file.
    """
    settings = settings or TensorRTSettings()
    with timing_cache.unpacked(settings.timing_cache) as timings:
        return _build(program, path, replace(settings, timing_cache=timings))


def _build(program: ExportedProgram, path: Path, settings: TensorRTSettings) -> BuiltEngine:
    from builder.engines.tensorrt import onnx_frontend, route

    if route.frontend_of(settings) == "onnx":
        return onnx_frontend.build(program, path, settings, route.python_of(settings))
    convert = _convert_function()
    torch_tensorrt = _import("torch_tensorrt")
    program = decompose_attention(program, window_plugin=settings.window_attention == "plugin")
    libraries = (plugin_library(),) if uses_operator(program) else ()
    for library in libraries:
        _load_plugin(library)
    keywords = checked_keywords(convert, settings)
    inputs = [torch_tensorrt.Input(**profile) for profile in profiles(program)]
    log_level = "info" if logging.getLogger("torch_tensorrt").isEnabledFor(logging.INFO) else "warning"
    try:
        # Without a debugger the plan forgets its layers' types, which the check below reads.
        with (
            tempfile.TemporaryDirectory() as folder,
            torch_tensorrt.dynamo.Debugger(log_level=log_level, engine_builder_monitor=False, logging_dir=folder),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # the exporter warns about its own deprecated calls
            plan = convert(program, arg_inputs=inputs, **keywords)
    except Exception as error:  # the compilers raise classes that have no common base
        raise EngineError(f"TensorRT could not compile the detector: {explain(error)}") from error
    information = _engine_information(plan)
    check_precision(information, program)
    path.write_bytes(plan)
    version, names = _import("tensorrt").__version__, (inputs_of(program), output_names())
    return plans.built(path, settings, "torch-tensorrt", version, *names, libraries)


def load(
    path: Path, spec: InputSpec, device: Device, settings: TensorRTSettings | None = None
) -> plans.PlanEngine | plans.ChildPlan:
    """Return the plan's engine on this machine's GPU, in the interpreter that has its TensorRT.

    Raises:
        EngineError: there is no TensorRT or GPU, or TensorRT cannot load the plan.
    """
    from builder.engines.tensorrt import route

    settings, library = settings or TensorRTSettings(), path.with_name(PLUGIN_LIBRARY)
    plugin = library if library.is_file() else None
    if route.frontend_of(settings) == "onnx" and not route.is_this(python := route.python_of(settings)):
        return plans.ChildPlan(path, plugin, python)
    return plans.PlanEngine.of(path, plugin, spec)


def profiles(program: ExportedProgram) -> list[dict[str, Any]]:
    """Return the arguments of `torch_tensorrt.Input` for each input: one shape, or smallest, usual and largest.

    The usual shape, for which TensorRT chooses kernels, is the largest batch.
    """
    result = []
    for name, value in zip(inputs_of(program), _input_tensors(program), strict=True):
        limits = [_limits(program, size) for size in value.shape]
        smallest, largest = (tuple(limit[i] for limit in limits) for i in (0, 1))
        shapes = (
            {"shape": largest}
            if smallest == largest
            else {"min_shape": smallest, "opt_shape": largest, "max_shape": largest}
        )
        result.append({**shapes, "dtype": value.dtype, "name": name})
    return result


def checked_keywords(function: Callable[..., Any], settings: TensorRTSettings) -> dict[str, Any]:
    """Return the settings as keywords of `function`, every one of which it names.

    torch_tensorrt swallows keywords that it does not know, from 2.13 on without a word.

    Raises:
        EngineError: the installed function does not have a setting; names it.
    """
    keywords, known = settings.keywords(), _parameters(function)
    unknown = [name for name in keywords if name not in known and name not in _IF_PRESENT]
    if unknown:
        version = _version("torch-tensorrt")
        raise EngineError(
            f"torch_tensorrt {version} does not know {', '.join(unknown)}; install torch-tensorrt 2.11 to 2.14"
        )
    return {name: value for name, value in keywords.items() if name in known}


def explain(error: BaseException) -> str:
    """Return one line on a failed conversion: the operators without a converter, or what went wrong first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None:
        chain.append(current)
        current = current.__cause__ or current.__context__
    text = "\n".join(str(each) for each in chain)
    operators = sorted(set(re.findall(r"Conversion of function (\S+) not currently supported", text)))
    if operators:
        return f"no converter for {', '.join(operators)}"
    return first_line(chain[-1])


def _input_tensors(program: ExportedProgram) -> list[torch.Tensor]:
    names = program.graph_signature.user_inputs
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return [values[name] for name in names]


def _limits(program: ExportedProgram, size: int | torch.SymInt) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    constraint = program.range_constraints[size.node.expr]
    return int(constraint.lower), int(constraint.upper)


def _engine_information(plan: bytes) -> dict[str, Any]:
    tensorrt = _import("tensorrt")
    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING)).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError("TensorRT cannot load the plan it has just built; its log says why")
    text = engine.create_engine_inspector().get_engine_information(tensorrt.LayerInformationFormat.JSON)
    information: dict[str, Any] = json.loads(text)
    return information


def _convert_function() -> Callable[..., Any]:
    module = _import("torch_tensorrt")
    function: Callable[..., Any] = module.dynamo.convert_exported_program_to_serialized_trt_engine
    return function


def _load_plugin(library: Path) -> None:
    _import("torch_tensorrt")
    from builder.operators.tensorrt_converter import load_plugin

    load_plugin(library)


def _parameters(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name for each in parameters if each.kind is not inspect.Parameter.VAR_KEYWORD}


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise EngineError(
            f"the tensorrt engine needs {name}, which cannot be imported ({first_line(error)}); use the image "
            "of Dockerfile.triton, or the onnx engine"
        ) from error


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "(unknown version)"
