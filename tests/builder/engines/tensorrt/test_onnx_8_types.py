"""Which nodes of a quantised detector are held to a type, and which are left to integers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builder.engines.tensorrt.onnx_8_types import beside_integers, held_types, widen
from builder.operators import interface

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT


def node(operator, inputs, output, **attributes):
    """A node of its output's name; `inputs` in one word each."""
    return helper.make_node(operator, inputs.split(), output.split(), name=output.split()[0], **attributes)


def rounded(tensor):
    """The two nodes that round a tensor and give TENSOR_rounded."""
    return [
        node("QuantizeLinear", f"{tensor} scale zero", f"{tensor}_int8"),
        node("DequantizeLinear", f"{tensor}_int8 scale zero", f"{tensor}_rounded"),
    ]


# A block of a residual network and a layer of a decoder; the weight of its quantised product is transposed.
NODES = [
    node("Relu", "images", "stem"),
    node("MaxPool", "stem", "pooled", kernel_shape=[2, 2]),
    *rounded("pooled"),
    *rounded("weight"),
    node("Conv", "pooled_rounded weight_rounded", "conv"),
    node("Add", "conv pooled", "added"),
    node("Relu", "added", "block"),
    node("Reshape", "block shape", "tokens"),
    node("Transpose", "tokens", "memory"),
    node("MatMul", "memory projection", "product"),
    node("Add", "product bias", "linear"),
    node("Cast", "linear", "wide", to=FULL),
    node("Softmax", "wide", "weights"),
    node("Cast", "weights", "narrow", to=HALF),
    *rounded("narrow"),
    *rounded("matrix"),
    node("Transpose", "matrix_rounded", "transposed"),
    node("MatMul", "narrow_rounded transposed", "quantised_product"),
    node("Add", "quantised_product bias", "quantised_linear"),
    node("Cast", "quantised_linear", "residual", to=FULL),
    node("Add", "residual wide", "sum"),
    node(interface.PLUGIN_NAME, "memory", "attended", domain="trt.plugins"),
    node("Shape", "attended", "sizes"),
]
FLOAT32 = {"wide", "weights", "residual", "sum"}


def test_integers_reach_past_what_moves_numbers_and_what_is_fused():
    free = beside_integers(NODES, FLOAT32)
    assert free == {
        "stem", "pooled", "conv", "added", "block", "weights", "narrow", "transposed", "quantised_product",
        "quantised_linear",
    }  # fmt: skip  # a set of words


@pytest.mark.parametrize(("float32", "reached"), [((), True), (("added",), False)])
def test_a_float32_node_is_fused_into_no_product(float32, reached):
    assert ("block" in beside_integers(NODES, float32)) is reached


def model_of(nodes):
    names = {name for each in nodes for name in each.output if not name.endswith("_int8")}
    values = [helper.make_tensor_value_info(name, FULL if name in FLOAT32 else HALF, None) for name in sorted(names)]
    sizes = next(value for value in values if value.name == "sizes")
    sizes.type.tensor_type.elem_type = TensorProto.INT64
    images = helper.make_tensor_value_info("images", HALF, [1, 2, 4, 4])
    bias = numpy_helper.from_array(np.ones(2, np.float16), "bias")
    graph = helper.make_graph(nodes, "graph", [images], [values.pop()], [bias], value_info=values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)])


def test_what_has_no_part_in_integers_is_held_to_its_type():
    half = dict.fromkeys(["tokens", "memory", "product", "linear"], "float16")
    assert held_types(model_of(NODES)) == half | dict.fromkeys(FLOAT32, "float32")


def test_a_widened_file_has_no_half_precision():
    model = model_of([*NODES, node("Constant", "", "one", value=numpy_helper.from_array(np.ones(1, np.float16)))])
    widen(model)
    assert "FLOAT16" not in onnx.printer.to_text(model).upper()
    assert [each.attribute[0].i for each in model.graph.node if each.op_type == "Cast"] == [FULL] * 3
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), np.ones(2, np.float32))
