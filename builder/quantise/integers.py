"""Brings the ONNX file of a quantised detector to the form that ONNX Runtime computes in integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from builder.quantise.operator import RANGES

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def store_integers(model: ModelProto) -> None:
    """Keep quantised weights as integers, in place, and as the product reads them.

    ONNX Runtime makes an integer product of a MatMul whose weights come from a DequantizeLinear node, not of one with a
    Transpose between.
    """
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    users = _users(graph.node)
    gone: set[int] = set()
    made = []
    for node in graph.node:
        if node.op_type != QUANTISE or node.input[0] not in weights:
            continue
        (dequantise,) = users[node.output[0]]
        axis = helper.get_node_attr_value(dequantise, "axis")
        integers = _rounded(weights[node.input[0]], weights[node.input[1]], axis)
        after = users[dequantise.output[0]]
        if len(after) == 1 and after[0].op_type == "Transpose":
            permutation = list(helper.get_node_attr_value(after[0], "perm"))
            integers, axis = integers.transpose(permutation), permutation.index(axis)
            dequantise.output[0] = after[0].output[0]
            gone.add(id(after[0]))
        zeros = numpy_helper.from_array(np.zeros(integers.shape[axis], np.int8), f"{node.output[0]}_zeros")
        made.append(zeros)  # ONNX Runtime cannot make weights unsigned that have their zeros in common
        dequantise.input[:] = [node.output[0], dequantise.input[1], zeros.name]
        del dequantise.attribute[:]
        dequantise.attribute.append(helper.make_attribute("axis", axis))
        made.append(numpy_helper.from_array(np.ascontiguousarray(integers), node.output[0]))
        gone.add(id(node))
    _keep(model, [node for node in graph.node if id(node) not in gone])
    graph.initializer.extend(made)
    stored = {tensor.name for tensor in made}
    known = [value for value in graph.value_info if value.name not in stored]  # a transposed one has another shape now
    del graph.value_info[:]
    graph.value_info.extend(known)
    _drop_unused(model)


def store_biases(model: ModelProto) -> None:
    """Keep the biases of quantised linear layers as integers too, in place, in units of a product of their inputs.

    ONNX Runtime takes product and bias together, and makes an integer product of both or of neither.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    nodes: list[NodeProto] = []
    for node in graph.node:
        product = next((makers[name] for name in node.input if name in makers), None)
        bias = next((name for name in node.input if name in constants), None)
        if node.op_type == "Add" and bias is not None and product is not None and product.op_type == "MatMul":
            scales = [_scale(makers.get(name), constants) for name in product.input]
            if all(scale is not None for scale in scales):
                units = (scales[0] * scales[1]).astype(np.float32)
                integers = np.rint(constants[bias] / units).astype(np.int32)
                # by the node, not by the bias, which a layer that is called twice has twice
                names = [f"{node.output[0]}_bias_{part}" for part in ("int32", "scale", "of_int32")]
                graph.initializer.append(numpy_helper.from_array(integers, names[0]))
                graph.initializer.append(numpy_helper.from_array(np.broadcast_to(units, integers.shape), names[1]))
                nodes.append(helper.make_node(DEQUANTISE, names[:2], names[2:], names[2], axis=0))
                node.input[:] = [names[2] if name == bias else name for name in node.input]
        nodes.append(node)
    _keep(model, nodes)
    _drop_unused(model)


def _scale(node: NodeProto | None, constants: Mapping[str, NDArray[Any]]) -> Any:
    return constants.get(node.input[1]) if node is not None and node.op_type == DEQUANTISE else None


def round_after_relu(model: ModelProto) -> None:
    """Round a convolution's output once, after its ReLU, in place, where nothing else reads it.

    The zero of what follows is then the least integer, and ONNX Runtime does the ReLU by cutting to it.
    """
    graph = model.graph
    users, makers = _users(graph.node), {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type != "Relu" or any(user.op_type != QUANTISE for user in users.get(node.output[0], [node])):
            continue
        dequantise = makers.get(node.input[0])
        if dequantise is None or dequantise.op_type != DEQUANTISE or len(users[dequantise.output[0]]) > 1:
            continue
        quantise = makers[dequantise.input[0]]
        if len(users[quantise.output[0]]) == 1:
            node.input[0] = quantise.input[0]
    _drop_unread(model)


def _rounded(weight: NDArray[Any], scale: NDArray[Any], axis: int) -> NDArray[np.int8]:
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    units = np.rint(weight / scale.reshape(shape))
    return np.clip(units, *RANGES["int8"]).astype(np.int8)


def _users(nodes: Sequence[NodeProto]) -> dict[str, list[NodeProto]]:
    users: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


def _keep(model: ModelProto, nodes: list[NodeProto]) -> None:
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _drop_unread(model: ModelProto) -> None:
    """Remove nodes that nothing reads, and what only they read."""
    wanted = {output.name for output in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= set(node.input)
    _keep(model, kept[::-1])
    _drop_unused(model)


def _drop_unused(model: ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
