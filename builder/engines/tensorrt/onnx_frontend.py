"""ONNX to a plan through TensorRT's own parser, for every release from 8.5 to 11.

TensorRT runs in a child process, which may be another Python: `plan_child.py` needs tensorrt and NumPy only. Where
TensorRT aborts its process, this one says so and goes on. On GPUs plans have been built so by 8.5.3.1 alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import onnx
from torch.export import ExportedProgram

from builder.engines import EngineError
from builder.engines.kinds import BuiltEngine
from builder.engines.scopes import mark_outputs
from builder.engines.tensorrt import (
    TensorRTSettings,
    onnx_8,
    plans,
    plugin_library,
    plugin_onnx,
    profiles,
    route,
)
from builder.engines.tensorrt.child import TensorRTPython
from builder.engines.tensorrt.precision import check_precision, count_plugin_layers, precision_of, warn_of_narrowed
from builder.operators import interface
from builder.pipeline.export import OUTPUT_NAMES, InputSpec, decompose_attention, inputs_of, uses_operator
from builder.precision import Precision, Quantised
from builder.quantise.operator import quantised_to

_FLOATING: dict[int, Precision] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}
_COMPARING = frozenset({"ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
_MISSING = "Plugin not found"  # of an operator that is neither ONNX's nor a registered plugin's, in the parser's words


@dataclass(frozen=True)
class PlanReport:
    """What a build tells beside the plan."""

    tensorrt: str  # version
    layers: dict[str, Any] | None  # TensorRT's inspector's JSON, for `builder.engines.tensorrt.precision`
    log: Path


def build(
    program: ExportedProgram, path: Path, settings: TensorRTSettings | None = None, python: TensorRTPython | None = None
) -> BuiltEngine:
    """Write the program's plan to `path` by way of ONNX with plugin nodes, as `builder.engines.tensorrt.build` does.

    The ONNX is that which the release reads: for TensorRT 8 by `onnx_8`.

    Raises:
        EngineError: as `build_plan`; the plugin is missing, or the plan's layers have other types than the program.
    """
    settings, python = settings or TensorRTSettings(), python or TensorRTPython()
    program = decompose_attention(program, window_plugin=settings.window_attention == "plugin")
    plugin = plugin_library() if uses_operator(program) else None
    with tempfile.TemporaryDirectory() as folder:
        onnx_file = Path(folder, plugin_onnx.FILE_NAME)
        float32_nodes = write_onnx(program, onnx_file, route.version_of(python))
        if settings.marked_modules:
            model = onnx.load(onnx_file)
            mark_outputs(model, settings.marked_modules)
            onnx.save(model, onnx_file)
        precision = quantised_to(program) or cast(Precision, precision_of(program))
        types = tensor_types(onnx.load(str(onnx_file), load_external_data=False))
        report = build_plan(
            onnx_file,
            path,
            _spec_of(program),
            precision,
            settings,
            plugin=plugin,
            float32_nodes=float32_nodes,
            python=python,
        )
    check_precision(report.layers or {}, program)
    if quantised_to(program) is None:
        warn_of_narrowed(report.layers or {}, types, report.tensorrt)
    plugin_layers = count_plugin_layers(report.layers or {}, program, report.tensorrt)
    if plugin is not None:
        shutil.copy(plugin, path.parent)  # where `load` looks
    libraries = () if plugin is None else (plugin,)
    inputs = inputs_of(program)
    return plans.built(path, settings, "onnx", report.tensorrt, inputs, OUTPUT_NAMES, libraries, plugin_layers)


def write_onnx(program: ExportedProgram, path: Path, version: str) -> list[str]:
    """Write the ONNX that a release of TensorRT reads; return the nodes to keep in float32; raises EngineError."""
    if route.is_8(version):
        return onnx_8.build(program, path)
    plugin_onnx.build(program, path)
    return []


def build_plan(
    onnx_file: Path,
    plan: Path,
    spec: InputSpec,
    precision: Precision | Quantised,
    settings: TensorRTSettings | None = None,
    *,
    plugin: Path | None = None,
    float32_nodes: Sequence[str] = (),
    python: TensorRTPython | None = None,
    inspect: bool = True,
    verbose: bool = False,
) -> PlanReport:
    """Build a plan for this machine's GPU; the log stays beside it, as `<plan>.log`.

    The plan has the types of the ONNX file: from TensorRT 9 on by itself, before by a constraint for every layer. Of
    a quantised file TensorRT 8 keeps `float32_nodes` in float32, and chooses for the others.

    Args:
        onnx_file: with opset 17 at most for TensorRT 8.5.
        plan: the file to write.
        spec: its batch is the profile, if the file's is open.
        precision: of the matrix products.
        settings: as for every TensorRT engine; what a release lacks is refused by name.
        plugin: its library, built with headers of that TensorRT, for a file with plugin nodes.
        float32_nodes: names of ONNX nodes of a quantised file; TensorRT 8 only.
        python: the interpreter that has TensorRT.
        inspect: whether to load the plan and report its layers.
        verbose: whether the log has more than warnings and errors.

    Raises:
        EngineError: TensorRT is missing, refused a setting, a node or the network, or ended; one line.
    """
    log = plan.with_name(plan.name + ".log")
    types: dict[str, Precision] = dict.fromkeys(float32_nodes, "float32") if precision in get_args(Quantised) else {}
    if precision in ("float16", "bfloat16"):
        types = node_types(onnx_file)
    request = {
        "task": "build",
        "onnx": str(onnx_file.resolve()),
        "plan": str(plan.resolve()),
        "batch": [1 if spec.is_dynamic else spec.max_batch_size, spec.max_batch_size, spec.max_batch_size],
        "precision": precision,
        "settings": _settings_of(settings or TensorRTSettings()),
        "plugin": None if plugin is None else str(plugin.resolve()),
        "node_types": types,
        "verbose": verbose,
        "inspect": inspect,
    }
    answer = (python or TensorRTPython()).ask(request, log)
    if "parser_errors" in answer:
        text = explain_parser_errors(answer["parser_errors"], onnx_file)
        raise EngineError(f"TensorRT {answer['tensorrt']} cannot parse {onnx_file.name}: {text}; log: {log}")
    return PlanReport(answer["tensorrt"], answer["layers"], log)


def node_types(onnx_file: Path) -> dict[str, Precision]:
    """Return the floating-point type of each node: of what it makes, else of what a plugin or a comparison reads."""
    model = onnx.load(str(onnx_file), load_external_data=False)
    found: dict[str, Precision] = {}
    types = tensor_types(model)
    for node in model.graph.node:
        for name in (*node.output, *(node.input if node.domain or node.op_type in _COMPARING else ())):
            if (type_ := types.get(name)) is not None:
                found[node.name] = type_
                break
    return found


def tensor_types(model: onnx.ModelProto) -> dict[str, Precision]:
    """Return the type of each floating-point tensor of an ONNX file, weights included, as far as it can be inferred."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input, *graph.output]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: _FLOATING[type_] for name, type_ in types.items() if type_ in _FLOATING}


def explain_parser_errors(errors: Sequence[Mapping[str, Any]], onnx_file: Path) -> str:
    """Return one line on the first error that belongs to a node, with the node's name and operator."""
    if not errors:
        return "the parser gives no reason"
    error = next((each for each in errors if each["index"] >= 0), errors[0])
    name, operator = error["node"], error["operator"]
    if not operator and error["index"] >= 0:
        nodes = onnx.load(str(onnx_file), load_external_data=False).graph.node
        if error["index"] < len(nodes):
            name, operator = nodes[error["index"]].name, nodes[error["index"]].op_type
    where = f"node {name or error['index']} ({operator}): " if operator else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    ours = operator in (interface.PLUGIN_NAME, interface.WINDOW_PLUGIN_NAME)
    remedy = (
        "; the plugin library is of another version: run make plugin again"
        if ours and _MISSING in error["text"]
        else ""
    )
    return f"{where}{error['text']}{more}{remedy}"


def _spec_of(program: ExportedProgram) -> InputSpec:
    images = profiles(program)[0]
    batch, height, width, _ = images.get("max_shape") or images["shape"]
    return InputSpec(height, width, batch, dynamic_batch="max_shape" in images)


def _settings_of(settings: TensorRTSettings) -> dict[str, Any]:
    """Return the settings of TensorRT's builder, for the child."""
    ours = ("frontend", "python", "backend", "marked_modules", "window_attention")
    values = {name: value for name, value in asdict(settings).items() if name not in ours}
    if settings.timing_cache is not None:
        values["timing_cache"] = str(settings.timing_cache.resolve())
    return values
