"""What of a quantised detector TensorRT 8.5 is held to: its file is float32, as QuantizeLinear wants it there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

from builder.precision import Precision

QUANTISING = frozenset({"QuantizeLinear", "DequantizeLinear"})
# What the builder may put into the layer of a quantised product in front of it.
_FUSED = frozenset({"Add", "Clip", "Div", "Erf", "HardSigmoid", "LeakyRelu", "Mul", "Relu", "Sigmoid", "Sub", "Tanh"})
# What the builder may do behind the QuantizeLinear instead of in front of it, on integers.
_MOVES = frozenset({
    "AveragePool", "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize",
    "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip  # a set of words


def held_types(model: ModelProto) -> dict[str, Precision]:
    """Return the type that nodes are to be held to, by their names, of a model in half precision.

    What worked in float32 is held to it. What worked in half precision is held to that only where it has no part in
    integers, which a layer so held would be asked not to compute in. Plugins choose for themselves, since 8.5 finds no
    format for one of half precision whose coordinates are float32.
    """
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    float32 = {node.name for node in model.graph.node if _makes(node, TensorProto.FLOAT, types)}
    free = beside_integers(model.graph.node, float32)
    held: dict[str, Precision] = {}
    for node in model.graph.node:
        if node.op_type in QUANTISING:
            continue
        if node.name in float32:
            held[node.name] = "float32"
        elif _makes(node, TensorProto.FLOAT16, types) and not node.domain and node.name not in free:
            held[node.name] = "float16"
    return held


def beside_integers(nodes: Sequence[NodeProto], float32: Iterable[str] = ()) -> set[str]:
    """Return the names of nodes that a builder may compute in integers, or fuse with what it so computes.

    They are what reads a DequantizeLinear, the elementwise nodes behind that, and what a QuantizeLinear reads, through
    nodes that only move numbers.

    Args:
        nodes: in the order of the graph.
        float32: names of nodes that end such a chain of elementwise nodes.
    """
    return _behind_dequantising(nodes, frozenset(float32)) | _before_quantising(nodes)


def _behind_dequantising(nodes: Sequence[NodeProto], float32: frozenset[str]) -> set[str]:
    found, dequantised, made = set[str](), set[str](), set[str]()
    for node in nodes:
        if node.op_type == "DequantizeLinear":
            dequantised.update(node.output)
            continue
        is_fused = node.op_type in _FUSED and node.name not in float32 and made.intersection(node.input)
        if is_fused or dequantised.intersection(node.input):
            found.add(node.name)
            made.update(node.output)
    return found


def _before_quantising(nodes: Sequence[NodeProto]) -> set[str]:
    found, read = set[str](), set[str]()
    for node in reversed(nodes):
        if node.op_type == "QuantizeLinear":
            read.add(node.input[0])
        elif read.intersection(node.output):
            found.add(node.name)
            read.update(node.input if node.op_type in _MOVES else ())
    return found


def widen(model: ModelProto) -> None:
    """Make a half-precision model float32, in place."""
    half, full = TensorProto.FLOAT16, TensorProto.FLOAT
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == half:
                attribute.i = full
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == half:
                attribute.t.CopyFrom(_as_float32(attribute.t))
    for tensor in model.graph.initializer:
        if tensor.data_type == half:
            tensor.CopyFrom(_as_float32(tensor))
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        if value.type.tensor_type.elem_type == half:
            value.type.tensor_type.elem_type = full


def _makes(node: NodeProto, type_: int, types: Mapping[str, int]) -> bool:
    return any(types.get(name) == type_ for name in node.output)


def _as_float32(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name)
