"""ONNX with plugin nodes as the parser of TensorRT 8.5 reads it: opset 16, its operators alone, constants folded.

What the parser knows: onnx-tensorrt, `docs/operators.md` of release 8.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor
from torch.export import ExportedProgram

from builder.engines import EngineError
from builder.engines.onnx import write
from builder.engines.tensorrt.onnx_8_rows import gather_rows
from builder.engines.tensorrt.plugin_onnx import DOMAIN, TRANSLATIONS
from builder.pipeline.export import decompose_attention
from builder.quantise.operator import quantised_to

OPSET, IR_VERSION = 16, 8  # the first opset with everything that a detector uses; the format of its time
QUANTISING = frozenset({"QuantizeLinear", "DequantizeLinear"})  # never folded: their weights would be floating again
MAX_FOLDED_BYTES = 2**24  # of a constant that is larger than what it is made of
# ONNX operators that the parser of 8.5 does not have.
UNKNOWN = frozenset({
    "Bernoulli", "BitShift", "BlackmanWindow", "Compress", "ConcatFromSequence", "ConvInteger", "DFT", "Det",
    "DynamicQuantizeLinear", "HammingWindow", "HannWindow", "Hardmax", "IsInf", "LayerNormalization", "MatMulInteger",
    "MaxRoiPool", "MaxUnpool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "Optional",
    "OptionalGetElement", "OptionalHasElement", "QLinearConv", "QLinearMatMul", "STFT", "SequenceAt",
    "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap",
    "SoftmaxCrossEntropyLoss", "SplitToSequence", "StringNormalizer", "TfIdfVectorizer", "Unique",
})  # fmt: skip  # a set of words
# What opset 18 changed, and a detector uses: axes became an input, or attributes came whose default is what was before.
_AXES_WERE_AN_ATTRIBUTE = frozenset(
    ["ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp"]
)
_CAME_WITH_18: dict[str, dict[str, Any]] = {
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "ScatterElements": {"reduction": b"none"},
    "ScatterND": {"reduction": b"none"},
}


def build(program: ExportedProgram, path: Path) -> list[str]:
    """Write the program as ONNX with plugin nodes to `path`; needs neither a GPU nor TensorRT.

    Returns:
        For a quantised program, whose file is float32, the names of nodes that are to stay so; for others none.

    Raises:
        EngineError: an operator has no ONNX form, or none that TensorRT 8.5 reads, or the result is not valid ONNX.
    """
    table: dict[Any, Any] = {
        torch.ops.aten.layer_norm.default: layer_norm,
        torch.ops.aten.group_norm.default: group_norm,
    }
    float32_nodes: list[str] = []

    def revise_and_widen(model: ModelProto) -> None:
        revise(model)
        if quantised_to(program) is not None:
            float32_nodes.extend(widen(model))

    write(decompose_attention(program, others=table), path, TRANSLATIONS, revise_and_widen)
    return float32_nodes


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Return `torch.nn.functional.layer_norm` in simple operators and float32: half precision loses the variance."""
    dims = list(range(-len(normalized_shape), 0))
    centred = x.float() - x.float().mean(dims, keepdim=True)
    normed = centred / torch.sqrt((centred * centred).mean(dims, keepdim=True) + eps)
    normed = normed if weight is None else normed * weight.float()
    return (normed if bias is None else normed + bias.float()).to(x.dtype)


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """Return `torch.nn.functional.group_norm` of [B, C, h, w] in simple operators and float32.

    ONNX's own form of it is an InstanceNormalization, which 8.5 leaves to a plugin that needs cuDNN.
    """
    groups = x.float().reshape(x.shape[0], num_groups, -1)
    normed = layer_norm(groups, groups.shape[-1:], eps=eps).reshape(x.shape)
    normed = normed if weight is None else normed * weight.float()[:, None, None]
    return (normed if bias is None else normed + bias.float()[:, None, None]).to(x.dtype)


def revise(model: ModelProto) -> None:
    """Bring a model of opset 18 to `OPSET` and fold its constants, in place.

    Raises:
        EngineError: an operator has no form there, or the parser does not have it; names the node.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.domain == "":
            _lower(node, constants)
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = OPSET
    model.ir_version = IR_VERSION
    share_batch(model)
    whole_shapes(model)
    fold(model)
    gather_rows(model)
    clip_after_bias(model)
    _check(model.graph.node)


def fold(model: ModelProto) -> None:
    """Compute, in place, every node whose inputs are constants.

    The parser takes equal bytes of different types for an error, and shapes and `k` of top-k only as constants.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kept, made = [], set[str]()
    for node in model.graph.node:
        results = _evaluate(node, constants)
        if results is None:
            kept.append(node)
            continue
        constants |= results
        made |= set(results)
    used = {name for node in kept for name in node.input} | {output.name for output in model.graph.output}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    tensors += [numpy_helper.from_array(constants[name], name) for name in sorted(made & used)]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(tensors)


def clip_after_bias(model: ModelProto) -> None:
    """Write the ReLU of a matrix product with a bias as a Clip, in place, for 8.5.3 loses it.

    First it fuses bias and ReLU ("EltReluFusion" in its verbose log), then product and bias ("MatmulBiasFusion"), and
    what is left adds the bias alone. The Clips of the same networks were fused by neither.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    zeros = set[int]()
    for node in graph.node:
        add = makers.get(node.input[0]) if node.op_type == "Relu" else None
        if add is None or add.op_type != "Add":
            continue
        kind = next((types[name] for name in add.input if name in types), None)
        if kind is None or not any(name in makers and makers[name].op_type == "MatMul" for name in add.input):
            continue
        node.op_type = "Clip"
        node.input.append(f"zero_{TensorProto.DataType.Name(kind).lower()}")
        zeros.add(kind)
    graph.initializer.extend(
        helper.make_tensor(f"zero_{TensorProto.DataType.Name(kind).lower()}", kind, [], [0.0]) for kind in sorted(zeros)
    )


def whole_shapes(model: ModelProto) -> None:
    """Take single sizes of a tensor from its whole shape, in place: 8.5's parser ignores a Shape's start and end.

    It says nothing, and what is made of the sizes then has too many dimensions.
    """
    graph = model.graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in [*graph.value_info, *graph.input]}
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        limits = {attribute.name: attribute.i for attribute in node.attribute if attribute.name in ("start", "end")}
        if node.op_type != "Shape" or not limits:
            continue
        del node.attribute[:]
        rank = ranks[node.input[0]]
        wanted = list(range(rank))[limits.get("start", 0) : limits.get("end", rank)]
        if len(wanted) == rank:
            continue
        name, part = node.output[0], f"{node.output[0]}_sizes"
        node.output[0] = f"{name}_whole"
        graph.initializer.append(numpy_helper.from_array(np.array(wanted, np.int64), part))
        nodes.append(helper.make_node("Gather", [node.output[0], part], [name], name=f"{node.name}_sizes", axis=0))
    del graph.node[:]
    graph.node.extend(nodes)


def share_batch(model: ModelProto) -> None:
    """Give every input the first one's batch, in place, where batches are open: to 8.5 each is a number of its own."""
    graph = model.graph
    opened = [value.name for value in graph.input if value.type.tensor_type.shape.dim[0].dim_param]
    if len(opened) < 2:
        return
    first, *others = opened
    nodes = [helper.make_node("Shape", [first], ["batch"], name="batch", start=0, end=1)]
    for name in others:
        (value,) = (each for each in graph.input if each.name == name)
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim][1:]
        for node in graph.node:
            node.input[:] = [f"{name}_of_batch" if each == name else each for each in node.input]
        graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), f"{name}_rest"))
        shape, result = f"{name}_shape", f"{name}_of_batch"
        nodes.append(helper.make_node("Concat", ["batch", f"{name}_rest"], [shape], name=shape, axis=0))
        nodes.append(helper.make_node("Reshape", [name, shape], [result], name=result))
        graph.value_info.append(helper.make_value_info(result, value.type))
    nodes.extend(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)


def widen(model: ModelProto) -> list[str]:
    """Make a half-precision model float32, in place; return the names of nodes that worked in float32 before.

    QuantizeLinear of opset 16 takes float32 alone. Where types are weak, half precision is the builder's choice
    anyhow, of all nodes but these.
    """
    half, full = TensorProto.FLOAT16, TensorProto.FLOAT
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    kept = [
        node.name
        for node in model.graph.node
        if node.op_type not in QUANTISING and any(types.get(name) == full for name in node.output)
    ]
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == half:
                attribute.i = full
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == half:
                attribute.t.CopyFrom(_as_float32(attribute.t))
    for tensor in model.graph.initializer:
        if tensor.data_type == half:
            tensor.CopyFrom(_as_float32(tensor))
    for value in values:
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = full
    return kept


def _as_float32(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _evaluate(node: NodeProto, constants: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]] | None:
    """Return a node's outputs by name; None where it has inputs that vary, or would make much of little."""
    inputs = [name for name in node.input if name]
    if node.domain != "" or node.op_type in QUANTISING or any(name not in constants for name in inputs):
        return None
    values = ReferenceEvaluator(node, opsets={"": OPSET}).run(None, {name: constants[name] for name in inputs})
    arrays = [np.asarray(value) for value in values]
    size = sum(array.nbytes for array in arrays)
    if size > max(MAX_FOLDED_BYTES, sum(constants[name].nbytes for name in inputs)):
        return None
    return dict(zip(node.output, arrays, strict=True))


def _lower(node: NodeProto, constants: dict[str, NDArray[Any]]) -> None:
    """Give a node of opset 18 the form of `OPSET`."""
    if node.op_type in _AXES_WERE_AN_ATTRIBUTE:
        axes = _constant(node, 1, constants)
        _keep(node, inputs=1, without=("noop_with_empty_axes",))
        if axes is not None:
            node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in axes]))
    elif node.op_type == "Split":
        _keep(node, inputs=2, without=("num_outputs",))  # without sizes the parts are equal, as they were before
    elif node.op_type == "Pad":
        if _constant(node, 3, constants) is not None:
            raise EngineError(f"{node.name} (Pad) has axes, which opset {OPSET} has not")
        _keep(node, inputs=3, without=())
    for name, before in _CAME_WITH_18.get(node.op_type, {}).items():
        for attribute in node.attribute:
            if attribute.name == name and helper.get_attribute_value(attribute) != before:
                raise EngineError(f"{node.name} ({node.op_type}) has {name}, which opset {OPSET} has not")
        if node.op_type == "Resize":
            _keep(node, inputs=4, without=(name,))


def _constant(node: NodeProto, place: int, constants: dict[str, NDArray[Any]]) -> NDArray[Any] | None:
    """Return an optional input, which must be a constant."""
    if len(node.input) <= place or not node.input[place]:
        return None
    if node.input[place] not in constants:
        raise EngineError(
            f"{node.name} ({node.op_type}) computes its {node.input[place]}; opset {OPSET} wants a constant"
        )
    return constants[node.input[place]]


def _keep(node: NodeProto, inputs: int, without: Iterable[str]) -> None:
    del node.input[inputs:]
    kept = [attribute for attribute in node.attribute if attribute.name not in without]
    del node.attribute[:]
    node.attribute.extend(kept)


def _check(nodes: Iterable[NodeProto]) -> None:
    """Refuse what the parser does not have, before TensorRT is asked."""
    for node in nodes:
        to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)
        if node.domain not in ("", DOMAIN) or node.op_type in UNKNOWN:
            raise EngineError(f"TensorRT 8.5 does not have {node.op_type} (node {node.name}); use a later release")
        if node.op_type == "Cast" and to == TensorProto.UINT8:
            raise EngineError(f"TensorRT 8.5 does not cast to uint8 (node {node.name}); use a later release")
