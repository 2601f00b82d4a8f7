"""TensorRT engine: the detector as a plan for Triton's TensorRT backend, deformable attention by our plugin.

The graph's own types decide the precision. TensorRT and torch_tensorrt are imported when they are needed, so that this
module can be imported, and its checks tested, where they are not installed.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from builder.engines import Device, EngineError, EngineOutput, first_line, output_of
from builder.engines.kinds import KINDS, BuiltEngine
from builder.engines.tensorrt.precision import check_precision
from builder.pipeline.export import INPUT_NAMES, OUTPUT_NAMES, InputSpec, uses_operator
from plugin_src import SOURCES
from serving.contract import PLUGIN_LIBRARY

PLUGIN_VARIABLE = "CODETR_PLUGIN"  # environment: the plugin's library, where it is not in build/plugin
_BUILT_PLUGIN = SOURCES.resolve().parent / "build" / "plugin" / PLUGIN_LIBRARY

# Keywords that came or went between torch_tensorrt 2.11 and 2.14: passed where the function has them. Strong typing is
# the only kind where `use_explicit_typing` is gone; the graph holds no fused attention whose bias could be dropped.
_IF_PRESENT = ("use_explicit_typing", "attn_bias_is_causal", "output_binding_names")


@dataclass(frozen=True)
class TensorRTSettings:
    """How TensorRT builds; None leaves a value to TensorRT."""

    optimization_level: int | None = None  # 0 (fast build) to 5; higher is not always a faster engine
    timing_cache: Path | None = None  # kernel timings, read and added to
    version_compatible: bool = False  # without the lean runtime, which a later TensorRT must get from elsewhere
    hardware_compatible: bool = False  # the plan also runs on other GPUs from Ampere on
    fp32_accumulation: bool = False  # of half-precision matrix products
    tf32: bool = False  # float32 matrix products with 10-bit mantissas
    workspace_gib: float | None = None  # the most GPU memory a kernel may use beside its tensors
    average_timings: int = 1  # runs a kernel is timed for
    immutable_weights: bool = True  # a plan that cannot be refitted may be faster

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise EngineError(f"optimization level {self.optimization_level} is not known; expected 0 to 5")
        if self.workspace_gib is not None and self.workspace_gib <= 0:
            raise EngineError(f"workspace {self.workspace_gib} GiB is not possible; expected more than 0")
        if self.average_timings < 1:
            raise EngineError(f"average_timings={self.average_timings} is not possible; expected at least 1")

    def keywords(self) -> dict[str, Any]:
        """Return the settings by torch_tensorrt's names."""
        keywords: dict[str, Any] = {
            "use_explicit_typing": True,
            "attn_bias_is_causal": False,
            "require_full_compilation": True,
            "min_block_size": 1,
            "assume_dynamic_shape_support": True,  # some converters serve dynamic shapes without being marked so
            "immutable_weights": self.immutable_weights,
            "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible,
            "use_fp32_acc": self.fp32_accumulation,
            "disable_tf32": not self.tf32,
            "num_avg_timing_iters": self.average_timings,
            "output_binding_names": OUTPUT_NAMES,
        }
        if self.optimization_level is not None:
            keywords["optimization_level"] = self.optimization_level
        if self.timing_cache is not None:
            keywords["timing_cache_path"] = str(self.timing_cache)
        if self.workspace_gib is not None:
            keywords["workspace_size"] = int(self.workspace_gib * 2**30)
        return keywords


def device() -> Device:
    """Return where the engine runs.

    Raises:
        EngineError: there is no GPU, or TensorRT or torch_tensorrt is not installed.
    """
    if not torch.cuda.is_available():
        raise EngineError("the tensorrt engine needs an NVIDIA GPU and a CUDA build of PyTorch; use the onnx engine")
    for name in ("tensorrt", "torch_tensorrt"):
        _import(name)
    return "cuda"


def check(uses_operator: bool) -> None:
    """Check that this machine has what `build` needs beside what `device` looks for: the plugin, for the operator.

    Raises:
        EngineError: there is none.
    """
    if uses_operator:
        plugin_library()


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


def build(program: ExportedProgram, path: Path, settings: TensorRTSettings | None = None) -> BuiltEngine:
    """Compile the program for this machine's GPU and write the plan to `path`.

    Raises:
        EngineError: TensorRT or the plugin is missing, an operator has no converter, the compilation failed, or the
            plan's layers have other types than the program.
    """
    convert = _convert_function()
    torch_tensorrt = _import("torch_tensorrt")
    libraries = (plugin_library(),) if uses_operator(program) else ()
    for library in libraries:
        _load_plugin(library)
    keywords = checked_keywords(convert, settings or TensorRTSettings())
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
    return BuiltEngine(path, KINDS["tensorrt"], "cuda", output_names(), libraries)


def load(path: Path, spec: InputSpec, device: Device) -> PlanEngine:
    """Return the plan's engine on this machine's GPU, for batches that `spec` allows."""
    tensorrt = _import("tensorrt")
    beside = path.with_name(PLUGIN_LIBRARY)
    if beside.is_file():
        _load_plugin(beside)
    engine = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.WARNING)).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineError(f"TensorRT {tensorrt.__version__} cannot load {path}; it was built by another version or GPU")
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    outputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.OUTPUT]
    return PlanEngine(path, engine, OUTPUT_NAMES if set(outputs) == set(OUTPUT_NAMES) else sorted(outputs))


class PlanEngine:
    """An `Engine` of a deserialised plan."""

    device: Device = "cuda"

    def __init__(self, path: Path, engine: Any, outputs: Sequence[str]) -> None:
        self.path, self.engine, self.outputs = path, engine, outputs
        self.context, self.stream = engine.create_execution_context(), torch.cuda.Stream()

    def __call__(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> EngineOutput:
        """Run the plan, as `builder.engines.Engine` says."""
        with torch.cuda.stream(self.stream):
            tensors = self._bind(images, image_sizes)
            self._enqueue()
            return output_of(tensors[name].cpu() for name in self.outputs)

    def prepare(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> Callable[[], object]:
        """Return a call that replays one inference as a CUDA graph, as `builder.engines.Engine` says."""
        with torch.cuda.stream(self.stream):
            tensors = self._bind(images, image_sizes)
            self._enqueue()  # what the context does at the first run with new shapes cannot be captured
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self._enqueue()

        def replay() -> Mapping[str, torch.Tensor]:
            graph.replay()
            return tensors

        return replay

    def _bind(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> dict[str, torch.Tensor]:
        """Give the context its inputs and new outputs on the GPU; return all of them by name."""
        tensors = {
            name: torch.from_numpy(array).cuda().contiguous()
            for name, array in zip(INPUT_NAMES, (images, image_sizes), strict=True)
        }
        for name, tensor in tensors.items():
            if not self.context.set_input_shape(name, tuple(tensor.shape)):
                raise EngineError(f"{self.path} takes no {name} of shape {tuple(tensor.shape)}")
        for name in self.outputs:
            shape, dtype = tuple(self.context.get_tensor_shape(name)), self.engine.get_tensor_dtype(name)
            tensors[name] = torch.empty(shape, dtype=_torch_type(dtype.name), device="cuda")
        for name, tensor in tensors.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        return tensors

    def _enqueue(self) -> None:
        if not self.context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise EngineError(f"{self.path} failed to run; TensorRT's log says why")


def profiles(program: ExportedProgram) -> list[dict[str, Any]]:
    """Return the arguments of `torch_tensorrt.Input` for each input: one shape, or smallest, usual and largest.

    The usual shape, for which TensorRT chooses kernels, is the largest batch.
    """
    result = []
    for name, value in zip(INPUT_NAMES, _input_tensors(program), strict=True):
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


def _torch_type(name: str) -> torch.dtype:
    """Return the type of an output by TensorRT's name of it."""
    return {"FLOAT": torch.float32, "INT32": torch.int32, "INT64": torch.int64}[name]


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
