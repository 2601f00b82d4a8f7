"""Gathered rows, in the plainest ONNX, for TensorRT 8.5."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper


def gather_rows(model: ModelProto) -> None:
    """Gather whole rows out of those of all pictures together, in place: plainly, and in one dimension.

    PyTorch repeats a row's number for each of its elements. 8.5.3's parser refuses such a GatherElements once the batch
    varies ("only takes data and indices of the same rank"), and with a GatherND within each picture, which it takes, a
    plan of RT-DETRv2 found nothing.
    """
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    shapes = _shapes(graph) | {name: list(array.shape) for name, array in constants.items()}
    makers = {name: node for node in graph.node for name in node.output}
    made: dict[str, Any] = {}  # constants
    starts: dict[int, str] = {}  # by rows of a picture, the name of where those of each picture begin, [B, 1]
    nodes: list[NodeProto] = []
    for node in graph.node:
        numbers = _row_numbers(node, constants, shapes, makers)
        if numbers is None:
            nodes.append(node)
            continue
        data, name = node.input[0], node.name
        if len(shapes[numbers]) == 3:
            made["rows_last_axis"] = [2]
            nodes.append(helper.make_node("Squeeze", [numbers, "rows_last_axis"], [f"{name}_row"], f"{name}_row"))
            numbers = f"{name}_row"
        if node.op_type == "GatherElements":
            _, count, *width = shapes[data]
            starts[count], made[f"{name}_shape"] = f"rows_of_{count}", [-1, *width]
            nodes.append(helper.make_node("Reshape", [data, f"{name}_shape"], [f"{name}_all"], f"{name}_all"))
            nodes.append(helper.make_node("Add", [numbers, starts[count]], [f"{name}_in_all"], f"{name}_in_all"))
            data, numbers = f"{name}_all", f"{name}_in_all"
        nodes.append(helper.make_node("Gather", [data, numbers], [node.output[0]], name, axis=0))
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    if starts and batch.dim_param:
        made |= {
            "first_picture": 0,
            "one_picture": 1,
            "rows_axis": [1],
            **{f"{each}_each": n for n, each in starts.items()},
        }
        nodes = [*_picture_starts(graph.input[0].name, starts), *nodes]
    else:
        made |= {name: [[i * count] for i in range(batch.dim_value)] for count, name in starts.items()}
    graph.initializer.extend(numpy_helper.from_array(np.array(value, np.int64), name) for name, value in made.items())
    used = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.op_type != "Expand" or used.intersection(node.output))


def _row_numbers(
    node: NodeProto, constants: dict[str, NDArray[Any]], shapes: dict[str, list[int]], makers: dict[str, NodeProto]
) -> str | None:
    """Return the numbers, [B, Q] or [B, Q, 1], by which a node gathers whole rows; None of another node.

    Out of [B, S] or [B, S, C] with GatherElements, out of [S, C], the same for every picture, with GatherND.
    """
    data, numbers = (node.input[0], node.input[1]) if len(node.input) > 1 else ("", "")
    size = shapes.get(data, [])
    if node.op_type == "GatherND" and not helper.get_node_attr_value(node, "batch_dims"):
        return numbers if len(size) == 2 and shapes.get(numbers, [])[2:] == [1] else None
    if node.op_type != "GatherElements" or helper.get_node_attr_value(node, "axis") != 1:
        return None
    if len(size) == 2:
        return numbers
    repeat = makers.get(numbers)
    if repeat is None or repeat.op_type != "Expand" or repeat.input[1] not in constants:
        return None
    is_repeated = constants[repeat.input[1]].tolist() == [1, 1, size[-1]] and shapes[repeat.input[0]][-1] == 1
    return repeat.input[0] if is_repeated else None


def _picture_starts(images: str, starts: dict[int, str]) -> list[NodeProto]:
    """Return nodes that make the tensors of `starts`, [B, 1], for as many pictures as there are."""
    nodes = [
        helper.make_node("Shape", [images], ["images_shape"], "images_shape"),
        helper.make_node("Gather", ["images_shape", "first_picture"], ["pictures"], "pictures", axis=0),
        helper.make_node("Range", ["first_picture", "pictures", "one_picture"], ["each_picture"], "each_picture"),
        helper.make_node("Unsqueeze", ["each_picture", "rows_axis"], ["picture_numbers"], "picture_numbers"),
    ]
    return [*nodes, *(helper.make_node("Mul", ["picture_numbers", f"{n}_each"], [n], n) for n in starts.values())]


def _shapes(graph: GraphProto) -> dict[str, list[int]]:
    """Return the described tensors' shapes, 0 where a size is open."""
    values = [*graph.value_info, *graph.input, *graph.output]
    return {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in values}
