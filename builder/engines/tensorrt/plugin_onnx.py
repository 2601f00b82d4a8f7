"""ONNX with our TensorRT plugin as one node per deformable attention, for `trtexec --onnx`.

Only TensorRT with the plugin loaded can run it. TensorRT's parser finds the plugin's creator by the node's type and
the attributes `plugin_version` and `plugin_namespace`, and fills each of the creator's fields from the attribute of
the same name.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.defs
import onnxscript
import torch
from torch.export import ExportedProgram

import builder.operators.ms_deform_attn  # noqa: F401  # defines the operator
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


def _schema() -> onnx.defs.OpSchema:
    parameter, attribute = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.Attribute
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    value, reference_points, sampling_offsets, attention_logits, valid_shapes = interface.INPUT_NAMES
    inputs = [parameter(value, "T"), parameter(reference_points, "tensor(float)")]
    inputs += [parameter(sampling_offsets, "T"), parameter(attention_logits, "T")]
    inputs += [parameter(valid_shapes, "tensor(int32)", param_option=optional)]
    return onnx.defs.OpSchema(
        interface.PLUGIN_NAME,
        DOMAIN,
        1,
        inputs=inputs,
        outputs=[parameter("output", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[
            attribute(interface.SPATIAL_SHAPES_FIELD, onnx.defs.OpSchema.AttrType.INTS, ""),
            attribute("plugin_version", onnx.defs.OpSchema.AttrType.STRING, ""),
            attribute("plugin_namespace", onnx.defs.OpSchema.AttrType.STRING, ""),
        ],
    )


_PLUGIN = onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, 1), interface.PLUGIN_NAME, _schema())


def _plugin_node(
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
    return _PLUGIN(
        *tensors,
        **{interface.SPATIAL_SHAPES_FIELD: list(spatial_shapes)},
        plugin_version=interface.PLUGIN_VERSION,
        plugin_namespace=interface.PLUGIN_NAMESPACE,
    )


TRANSLATIONS = {torch.ops.codetr.ms_deform_attn.default: _plugin_node}
