"""ONNX with our TensorRT plugins as one node per deformable and window attention, for `trtexec --onnx`.

Only TensorRT with the plugins loaded can run it. TensorRT's parser finds a plugin's creator by the node's type and
the attributes `plugin_version` and `plugin_namespace`, and fills each of the creator's fields from the attribute of
the same name.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.defs
import onnxscript
import torch
from torch.export import ExportedProgram

import builder.operators.ms_deform_attn
import builder.operators.window_attention  # noqa: F401  # both define their operators
from builder.engines.kinds import KINDS
from builder.engines.onnx import write
from builder.operators import interface
from builder.pipeline.export import InputSpec, decompose_attention
from builder.quantise.operator import quantised_to
from serving.contract import PLUGIN_LIBRARY

FILE_NAME = KINDS["onnx"].file_name
DOMAIN = "trt.plugins"  # TensorRT looks at the type only; every other reader needs a domain that is not ONNX's own
QUANTISED_OPSET = 19

__all__ = ["FILE_NAME", "build", "trtexec_line"]


def build(program: ExportedProgram, path: Path) -> None:
    """Write the program as ONNX with plugin nodes to `path`; needs neither a GPU nor TensorRT.

    Window attention that the plugin does not do is written out.

    Raises:
        EngineError: an operator has no ONNX form, or the result is not valid ONNX.
    """
    write(
        decompose_attention(program), path, TRANSLATIONS, raise_opset if quantised_to(program) else lambda model: None
    )


def raise_opset(model: onnx.ModelProto) -> None:
    """Make a model of opset 18 one of 19, in place: QuantizeLinear takes half precision and E4M3 from there on.

    Of what else 19 changed nothing has another meaning.
    """
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = QUANTISED_OPSET


def trtexec_line(path: Path, spec: InputSpec) -> str:
    """Return the command that builds a plan from the ONNX file `path` of inputs `spec`."""
    inputs = [value.name for value in onnx.load(path, load_external_data=False).graph.input]
    words = ["trtexec", f"--onnx={path}", "--stronglyTyped", f"--staticPlugins=build/plugin/{PLUGIN_LIBRARY}"]
    if spec.is_dynamic:
        for option, batch in (("min", 1), ("opt", spec.max_batch_size), ("max", spec.max_batch_size)):
            shapes = {"images": f"{batch}x{spec.height}x{spec.width}x3", "image_sizes": f"{batch}x2"}
            words.append(f"--{option}Shapes={','.join(f'{name}:{shapes[name]}' for name in inputs)}")
    words += [f"--saveEngine={path.with_name('model.plan')}", "--profilingVerbosity=detailed", "--skipInference"]
    return shlex.join(words)


_Parameter, _Attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
_OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional
_FIND_CREATOR = {"plugin_version": interface.PLUGIN_VERSION, "plugin_namespace": interface.PLUGIN_NAMESPACE}


def _plugin(name: str, inputs: Sequence[Any], fields: dict[str, Any], types: Sequence[str]) -> onnxscript.values.Op:
    """Return a plugin as an operator of ONNX.

    Args:
        name: of the plugin.
        inputs: parameters.
        fields: the type of each.
        types: that T, which is the output's, stands for.
    """
    attributes = {**fields, **dict.fromkeys(_FIND_CREATOR, onnx.defs.OpSchema.AttrType.STRING)}
    schema = onnx.defs.OpSchema(
        name,
        DOMAIN,
        1,
        inputs=inputs,
        outputs=[_Parameter("output", "T")],
        type_constraints=[("T", [f"tensor({each})" for each in types], "")],
        attributes=[_Attribute(field, type_, "") for field, type_ in attributes.items()],
    )
    return onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), name, schema)


def _deformable_plugin() -> onnxscript.values.Op:
    value, reference_points, sampling_offsets, attention_logits, valid_shapes = interface.INPUT_NAMES
    inputs = [_Parameter(value, "T"), _Parameter(reference_points, "tensor(float)")]
    inputs += [_Parameter(sampling_offsets, "T"), _Parameter(attention_logits, "T")]
    inputs += [_Parameter(valid_shapes, "tensor(int32)", param_option=_OPTIONAL)]
    fields = {interface.SPATIAL_SHAPES_FIELD: onnx.defs.OpSchema.AttrType.INTS}
    return _plugin(interface.PLUGIN_NAME, inputs, fields, ("float", "float16", "bfloat16"))


def _window_plugin() -> onnxscript.values.Op:
    qkv, bias_table, qkv_bias = interface.WINDOW_INPUT_NAMES
    inputs = [_Parameter(qkv, "T"), _Parameter(bias_table, "T"), _Parameter(qkv_bias, "T", param_option=_OPTIONAL)]
    fields = dict.fromkeys((interface.WINDOW_SIZE_FIELD, interface.SHIFT_FIELD), onnx.defs.OpSchema.AttrType.INT)
    return _plugin(interface.WINDOW_PLUGIN_NAME, inputs, fields, ("float16", "bfloat16"))


_DEFORMABLE, _WINDOW = _deformable_plugin(), _window_plugin()


def _deformable_node(
    value: Any,
    reference_points: Any,
    sampling_offsets: Any,
    attention_logits: Any,
    spatial_shapes: Sequence[int],
    valid_shapes: Any = None,
) -> Any:
    """Translate the operator: the sizes become the plugin's field, the tensors its inputs."""
    tensors = [value, reference_points, sampling_offsets, attention_logits]
    tensors += [] if valid_shapes is None else [valid_shapes]
    return _DEFORMABLE(*tensors, **{interface.SPATIAL_SHAPES_FIELD: list(spatial_shapes)}, **_FIND_CREATOR)


def _window_node(qkv: Any, qkv_bias: Any, bias_table: Any, window_size: int, shift: int) -> Any:
    """Translate the operator: the numbers become the plugin's fields, the tensors its inputs."""
    tensors = [qkv, bias_table, *([] if qkv_bias is None else [qkv_bias])]
    fields = {interface.WINDOW_SIZE_FIELD: window_size, interface.SHIFT_FIELD: shift}
    return _WINDOW(*tensors, **fields, **_FIND_CREATOR)


TRANSLATIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.codetr.ms_deform_attn.default: _deformable_node,
    torch.ops.codetr.window_attention.default: _window_node,
}
