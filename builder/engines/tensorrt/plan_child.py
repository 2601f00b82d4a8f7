"""Builds a TensorRT plan from ONNX, or runs a plan, in a process of its own; `child.TensorRTPython` starts it.

    python plan_child.py REQUEST.json

The interpreter may be another than the project's. It needs tensorrt (8.5 to 11) and NumPy, and imports nothing else,
so this file keeps to what Python 3.8 knows. The log goes to stderr. The answer is JSON in the file that the request
names; it has `error` where something was refused.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

# The network's types by the project's names, in TensorRT's words.
TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
# How outputs of a type come to NumPy, which has no bfloat16.
READ_AS = {"FLOAT": np.float32, "HALF": np.float16, "BF16": np.uint16, "INT32": np.int32, "INT64": np.int64}
# Of the builder, where networks are weakly typed: QuantizeLinear nodes alone allow no layer to be INT8 there.
FLAGS = {"float16": ("FP16",), "bfloat16": ("BF16",), "int8": ("INT8", "FP16")}
HALF_TYPES = ("HALF", "BF16")
REGION = "ForeignNode"  # in the name of what TensorRT's second compiler fuses
QUANTISED = {"int8": "INT8", "fp8": "FP8"}  # layers between QuantizeLinear nodes; the others have another type
KEEP_SECONDS = 20.0  # between two writings of the timings of a build that goes on
# Each setting, the object of the module that has it, and the release it came with.
NEEDED = {
    "optimization_level": ("IBuilderConfig.builder_optimization_level", "8.6"),
    "version_compatible": ("BuilderFlag.VERSION_COMPATIBLE", "8.6"),
    "hardware_compatible": ("HardwareCompatibilityLevel.AMPERE_PLUS", "8.6"),
}


class RefusedError(Exception):
    """What TensorRT, or this file, does not do; the message is one line."""


def import_tensorrt() -> Any:
    """Return the module tensorrt; that of 8.5 asks NumPy for a name that it no longer has."""
    if "bool" not in vars(np):
        np.bool = bool  # type: ignore[attr-defined, unused-ignore]
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise RefusedError(f"{sys.executable} cannot import tensorrt: {error}") from error


def version(request: dict[str, Any]) -> dict[str, Any]:
    """Return the version of TensorRT; needs no GPU."""
    return {"tensorrt": import_tensorrt().__version__}


def check_settings(trt: Any, request: dict[str, Any]) -> None:
    """Refuse, by name, what this release of TensorRT does not have."""
    settings = request["settings"]
    for name, (place, release) in NEEDED.items():
        wanted = settings[name] is not None and settings[name] is not False  # level 0 is wanted
        if wanted and not _has(trt, place):
            raise RefusedError(f"TensorRT {trt.__version__} has no {name}; {release} and later do")
    if settings["fp32_accumulation"]:
        raise RefusedError("fp32_accumulation is not a setting of TensorRT's ONNX parser; cast in the ONNX file")
    precision, typed = request["precision"], is_strongly_typed(trt)
    missing = [flag for flag in FLAGS.get(precision, ()) if not _has(trt, f"BuilderFlag.{flag}")]
    if not typed and missing:
        raise RefusedError(f"TensorRT {trt.__version__} has no {precision}; 9 and later do")
    if precision == "fp8" and not _has(trt, "DataType.FP8"):
        raise RefusedError(f"TensorRT {trt.__version__} has no fp8; 10.6 and later do, on GPUs from Ada on")


def is_strongly_typed(trt: Any) -> bool:
    """Return whether networks take their types from the graph: in 9 and 10 where asked for, from 11 on always."""
    return _has(trt, "NetworkDefinitionCreationFlag.STRONGLY_TYPED")


def network_flags(trt: Any) -> int:
    """Return the flags of a network of explicit batch and, where there is such a thing, strong types."""
    names = [
        name for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if _has(trt, f"NetworkDefinitionCreationFlag.{name}")
    ]
    return sum(1 << int(getattr(trt.NetworkDefinitionCreationFlag, name)) for name in names)


def make_logger(trt: Any, verbose: bool) -> Any:
    """Return a logger that writes to stderr and keeps errors, and warnings."""

    class Log(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self.errors.append(text)
            elif int(severity) == int(trt.ILogger.Severity.WARNING):
                self.warnings.append(text)
            if verbose or int(severity) <= int(trt.ILogger.Severity.WARNING):
                print(f"{str(severity).split('.')[-1]}: {text}", file=sys.stderr, flush=True)

    return Log()


def explain(errors: list[str]) -> str:
    """Return the one line of TensorRT's errors that says most: the first that names a node or layer, or the first."""
    lines = [" ".join(text.split()) for text in errors] or ["its log has no error"]
    named = [line for line in lines if "node" in line.lower() or "layer" in line.lower()]
    line = (named or lines)[0]
    return line if len(line) <= 400 else line[:400] + " ..."


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Build the plan and return what it is, or the parser's errors."""
    trt = import_tensorrt()
    check_settings(trt, request)
    logger = make_logger(trt, request["verbose"])
    trt.init_libnvinfer_plugins(logger, "")
    if request["plugin"]:
        load_plugin(request["plugin"])
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what the bindings make of a null pointer
        # 8.5 only warns that there is no GPU
        reason = explain(logger.errors or logger.warnings[-1:])
        raise RefusedError(f"TensorRT {trt.__version__} did not start: {reason}") from error
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        return {
            "tensorrt": trt.__version__,
            "parser_errors": [parser_error(parser.get_error(i)) for i in range(parser.num_errors)],
        }
    check_types(trt, network, request["precision"])
    config = make_config(trt, builder, network, request)
    selector = None  # TensorRT does not keep it alive
    if not is_strongly_typed(trt):
        constrain_types(trt, network, config, request)
        selector = keep_regions_wide(trt, config, request["precision"])
    every = KEEP_SECONDS if trt.__version__.startswith("8.5.") else None
    with kept_timings(config, request["settings"]["timing_cache"], every):
        plan = builder.build_serialized_network(network, config)
    del selector
    if plan is None:
        raise RefusedError(f"TensorRT {trt.__version__} built no plan: {explain(logger.errors)}")
    Path(request["plan"]).write_bytes(plan)
    told = inspect(trt, logger, plan, request["batch"][-1]) if request["inspect"] else None
    return {"tensorrt": trt.__version__, "layers": told}


@contextmanager
def kept_timings(config: Any, path: str | None, every: float | None) -> Iterator[None]:
    """Write the timing cache, if there is one, at the end, also of a build that fails, and `every` so many seconds.

    So a build that is ended loses little. Whether a cache may be read while a builder fills it NVIDIA does not say;
    with 8.5.3 it has been done through eight builds.
    """
    over = threading.Event()

    def keep() -> None:
        while not over.wait(every):
            write()

    def write() -> None:
        Path(f"{path}.part").write_bytes(config.get_timing_cache().serialize())
        os.replace(f"{path}.part", f"{path}")

    if not path:
        yield
        return
    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        write()


def load_plugin(library: str) -> None:
    """Load a library whose creators register themselves."""
    try:
        ctypes.CDLL(library, mode=os.RTLD_NOW | os.RTLD_GLOBAL)
    except OSError as error:
        raise RefusedError(f"cannot load the plugin: {error}") from error


def parser_error(error: Any) -> dict[str, Any]:
    """Return an error of the parser; TensorRT 8 tells the node's index alone."""
    named = hasattr(error, "node_name")
    return {
        "index": error.node(),
        "node": error.node_name() if named else "",
        "operator": error.node_operator() if named else "",
        "text": " ".join(error.desc().split()),
    }


def check_types(trt: Any, network: Any, precision: str) -> None:
    """Refuse a file whose types are not those of the precision; weak types make float16 of a float32 file."""
    if precision in QUANTISED:
        check_quantised(trt, network, precision)
        return
    found = {name for name, word in TYPES.items() if word in _floating_types(network)}
    strange = found - {"float32", precision}
    if strange:
        raise RefusedError(f"the ONNX file has {', '.join(sorted(strange))} tensors; it was to be {precision}")
    if is_strongly_typed(trt) and precision not in found:
        raise RefusedError(
            f"the ONNX file has no {precision} tensor, and a network of TensorRT {trt.__version__} takes its types "
            "from the file"
        )


def check_quantised(trt: Any, network: Any, precision: str) -> None:
    """Refuse a file without the layers that make a network of the quantised type."""
    layers = [layer for layer in _layers(network) if layer.type == trt.LayerType.QUANTIZE]
    if not layers:
        raise RefusedError(f"the ONNX file has no QuantizeLinear node; it was to be {precision}")
    if not is_strongly_typed(trt):
        return  # there such a layer's type is FLOAT until the builder has run
    strange = {_type_name(layer.get_output(0)) for layer in layers} - {QUANTISED[precision]}
    if strange:
        raise RefusedError(f"the ONNX file quantises to {', '.join(sorted(strange))}; it was to be {precision}")


def make_config(trt: Any, builder: Any, network: Any, request: dict[str, Any]) -> Any:
    """Return the builder's configuration by the settings of `TensorRTSettings`, with the profile of dynamic batches.

    Preview features stay as the release has them: 8.5.3 advises FASTER_DYNAMIC_SHAPES_0805, and with it joined what it
    concatenated of open batches in another order.
    """
    config, settings = builder.create_builder_config(), request["settings"]
    flags = trt.BuilderFlag
    if not settings["tf32"]:
        config.clear_flag(flags.TF32)
    if not settings["immutable_weights"]:
        config.set_flag(flags.REFIT)
    if settings["version_compatible"]:
        config.set_flag(flags.VERSION_COMPATIBLE)
        config.set_flag(flags.EXCLUDE_LEAN_RUNTIME)
    if settings["hardware_compatible"]:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if settings["optimization_level"] is not None:
        config.builder_optimization_level = settings["optimization_level"]
    if settings["workspace_gib"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(settings["workspace_gib"] * 2**30))
    if _has(trt, "TacticSource.CUDNN"):  # a plan with its kernels would need cuDNN wherever it runs
        config.set_tactic_sources(config.get_tactic_sources() & ~(1 << int(trt.TacticSource.CUDNN)))
    config.avg_timing_iterations = settings["average_timings"]
    if settings["timing_cache"]:
        path = Path(settings["timing_cache"])
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            raise RefusedError(f"timing cache {path} belongs to another TensorRT or GPU; name another file")
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # without it the plan forgets its layers' types
    profile = make_profile(builder, network, request["batch"])
    if profile is not None:
        config.add_optimization_profile(profile)
    return config


def make_profile(builder: Any, network: Any, batch: list[int]) -> Any:
    """Return the profile of inputs whose batch is open, smallest, usual and largest; None where none is."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    for tensor in inputs:
        if any(size < 0 for size in tuple(tensor.shape)[1:]):
            raise RefusedError(f"input {tensor.name} has shape {tuple(tensor.shape)}; only its batch may be open")
    dynamic = [tensor for tensor in inputs if tuple(tensor.shape)[:1] == (-1,)]
    if not dynamic:
        return None
    profile = builder.create_optimization_profile()
    for tensor in dynamic:
        profile.set_shape(tensor.name, *((size, *tuple(tensor.shape)[1:]) for size in batch))
    return profile


def constrain_types(trt: Any, network: Any, config: Any, request: dict[str, Any]) -> None:
    """Allow a half type and hold every layer to its type in the file, where types are weak.

    The network itself does not tell them: to the parser of 8.5 nearly all is FLOAT. A layer has its node's name and
    type; those that the parser adds have the type of what they read. In a quantised file, which is float32, only the
    nodes that are to stay so are held. TensorRT deviates, with a warning, where it has no kernel of such a type.
    """
    precision = request["precision"]
    if precision == "float32":
        return
    for flag in FLAGS[precision]:
        config.set_flag(getattr(trt.BuilderFlag, flag))
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    node_types, follows = request["node_types"], precision not in QUANTISED
    layers = _layers(network)
    known: dict[str, str] = {}
    if node_types and not any(layer.name in node_types for layer in layers):
        raise RefusedError(f"TensorRT {trt.__version__} names no layer as its ONNX node, so types cannot be kept")
    for layer in layers:
        read = [known.get(tensor.name) for tensor in _inputs(layer)]
        type_ = node_types.get(layer.name)
        if layer.type == trt.LayerType.CONSTANT:
            type_ = next((name for name, word in TYPES.items() if word == _type_name(layer.get_output(0))), None)
        elif type_ is None and follows:
            type_ = next((each for each in read if each), None)
        if type_ is None:
            continue
        floating = [i for i in range(layer.num_outputs) if _type_name(layer.get_output(i)) in TYPES.values()]
        known.update((layer.get_output(i).name, type_) for i in floating)
        if layer.type == trt.LayerType.CONSTANT:
            continue
        # 8.5 finds no format for a plugin of a half precision that reads float32 too, as our coordinates are
        if layer.type != trt.LayerType.PLUGIN_V2 or set(read) == {type_}:
            layer.precision = getattr(trt.DataType, TYPES[type_])
        for i in floating:
            layer.set_output_type(i, getattr(trt.DataType, TYPES[type_]))


def keep_regions_wide(trt: Any, config: Any, precision: str) -> Any:
    """Let TensorRT take regions that read and put out float32 alone, where types are weak; return what must live.

    Whatever its layers are held to, 8.5 tries what it fused into a region with all floating-point inputs and outputs in
    float32 and with all in a half type, and takes what is faster: coordinates were rounded then, or were not, by some
    microseconds. Regions are a few hundredths of a detector's time.
    """
    if precision == "float32" or not hasattr(trt, "IAlgorithmSelector"):
        return None

    class Selector(trt.IAlgorithmSelector):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.IAlgorithmSelector.__init__(self)

        def select_algorithms(self, context: Any, choices: Any) -> list[int]:
            count = context.num_inputs + context.num_outputs if REGION in context.name else 0
            wide = [
                i
                for i, choice in enumerate(choices)
                if not any(_type_name(choice.get_algorithm_io_info(k)) in HALF_TYPES for k in range(count))
            ]
            return wide or list(range(len(choices)))

        def report_algorithms(self, contexts: Any, choices: Any) -> None:
            """Take no notice of what was chosen."""

    selector = Selector()
    config.algorithm_selector = selector
    return selector


def inspect(trt: Any, logger: Any, plan: Any, batch: int) -> Any:
    """Return what TensorRT's inspector says of the plan's layers where open batches are `batch`."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise RefusedError(f"TensorRT cannot load the plan it has just built: {explain(logger.errors)}")
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    inputs = {
        name: tuple(engine.get_tensor_shape(name))
        for name in names
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
    }
    if not any(-1 in shape for shape in inputs.values()):
        return describe(trt, engine)
    context = engine.create_execution_context()
    if context is None:  # no memory left beside others
        return describe(trt, engine)
    for name, shape in inputs.items():
        context.set_input_shape(name, (batch, *shape[1:]))
    context.infer_shapes()  # without it the inspector of 8.5 does not see them
    return describe(trt, engine, context)


def describe(trt: Any, engine: Any, context: Any = None) -> Any:
    """Return the inspector's JSON; of open batches it tells no types without a context that has their shapes."""
    inspector = engine.create_engine_inspector()
    if context is not None:
        inspector.execution_context = context
    return json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run the plan on every batch of the request's arrays with the server's own runner; write its outputs.

    The task `read` writes all outputs of the plan's own names, those that only keep it from fusing too.
    """
    trt = import_tensorrt()
    module = import_runner(request)
    arrays: dict[str, Any] = {}
    try:
        runner = load_runner(module, request, module.CudaDriver())
        for i, batch in enumerate(read_batches(request)):
            made = runner(*batch)
            arrays.update({f"{name}_{i}": made[k] for k, name in enumerate(module.OUTPUTS)})
            unread = read_unread(runner) if request["task"] == "read" else {}
            arrays.update({f"{name}_{i}": array for name, array in unread.items()})
    except module.PlanError as error:
        raise RefusedError(str(error)) from error
    np.savez(request["outputs"], **arrays)
    return {"tensorrt": trt.__version__}


def read_unread(runner: Any) -> dict[str, Any]:
    """Return the outputs of the last run that the runner itself has no use for, half types as float32."""
    found = {}
    for name, address in runner.unread.items():
        type_name = str(runner.engine.get_tensor_dtype(name)).split(".")[-1]
        if type_name not in READ_AS:
            continue
        array = np.empty(tuple(runner.context.get_tensor_shape(name)), READ_AS[type_name])
        runner.driver.download(array.ctypes.data, address, array.nbytes, runner.stream)
        runner.synchronize()
        if type_name == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        found[name] = array.astype(np.float32) if type_name == "HALF" else array
    return found


def layers(request: dict[str, Any]) -> dict[str, Any]:
    """Return what TensorRT tells of the plan: its layers, the time of each in one inference, and its memory.

    The times are those of TensorRT's own profiler, with which nothing overlaps, as the mean of `least` runs.
    """
    trt = import_tensorrt()
    module = import_runner(request)
    times: dict[str, list[float]] = {}

    class Times(trt.IProfiler):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    try:
        runner = load_runner(module, request, module.CudaDriver())
        replay = runner.prepare(*read_batches(request)[0])
        replay()
        runner.synchronize()
        profiler = Times()
        runner.context.profiler = profiler
        for _ in range(request["least"]):
            replay()
            runner.synchronize()
    except module.PlanError as error:
        raise RefusedError(str(error)) from error
    engine = runner.engine
    memory = getattr(engine, "device_memory_size_v2", None) or engine.device_memory_size
    return {
        "tensorrt": trt.__version__,
        "information": describe(trt, engine, runner.context),
        "times_ms": {name: sum(each) / request["least"] for name, each in times.items()},
        "activation_bytes": int(memory),
    }


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Repeat the inference of the request's one batch for `seconds`, one by one, and then as many queued at once.

    Returns:
        `times_ms` of single calls by the GPU's clock, from the first on; `calls_per_s` of those that were queued;
        `memory` in bytes of the GPU that plan, buffers and graphs take.
    """
    trt = import_tensorrt()
    module = import_runner(request)
    try:
        driver = module.CudaDriver()
        before = driver.used_memory()
        runner = load_runner(module, request, driver)
        replay = runner.prepare(*read_batches(request)[0])
        begin, end = driver.create_event(), driver.create_event()
        times: list[float] = []
        deadline = time.perf_counter() + request["seconds"]
        while time.perf_counter() < deadline or len(times) < request["least"]:
            driver.record(begin, runner.stream)
            replay()
            driver.record(end, runner.stream)
            runner.synchronize()
            times.append(driver.elapsed_ms(begin, end))
        memory, started = driver.used_memory() - before, time.perf_counter()
        for _ in times:
            replay()
        runner.synchronize()
        rate = len(times) / (time.perf_counter() - started)
    except module.PlanError as error:
        raise RefusedError(str(error)) from error
    return {"tensorrt": trt.__version__, "times_ms": times, "calls_per_s": rate, "memory": memory}


def import_runner(request: dict[str, Any]) -> Any:
    """Return the module of the server's runner of plans."""
    sys.path.insert(0, os.path.dirname(request["runner"]))
    return importlib.import_module("plan_runner")


def load_runner(module: Any, request: dict[str, Any], driver: Any) -> Any:
    """Return the runner of the request's plan."""
    plugin = Path(request["plugin"]) if request["plugin"] else None
    return module.PlanRunner(Path(request["plan"]), request["graphs"], plugin, driver)


def read_batches(request: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Return the request's images and sizes."""
    with np.load(request["inputs"]) as arrays:
        return [(arrays[f"images_{i}"], arrays[f"image_sizes_{i}"]) for i in range(request["batches"])]


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(i) for i in range(network.num_layers)]


def _inputs(layer: Any) -> list[Any]:
    return [tensor for tensor in map(layer.get_input, range(layer.num_inputs)) if tensor is not None]


def _type_name(tensor: Any) -> str:
    return str(tensor.dtype).split(".")[-1]


def _floating_types(network: Any) -> set[str]:
    types = {_type_name(layer.get_output(i)) for layer in _layers(network) for i in range(layer.num_outputs)}
    return types & set(TYPES.values())


def _has(trt: Any, place: str) -> bool:
    value = trt
    for name in place.split("."):
        value = getattr(value, name, None)
    return value is not None


TASKS = {"build": build, "run": run, "read": run, "layers": layers, "measure": measure, "version": version}


def main(path: str) -> None:
    """Do what the request asks; TensorRT's objects are left to the system, some releases crash in taking them down."""
    request = json.loads(Path(path).read_text(encoding="utf-8"))
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # of thousands of kernels a build tries some hundreds
    try:
        answer = TASKS[request["task"]](request)
    except RefusedError as error:
        answer = {"error": str(error)}
    except Exception as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
