"""ONNX for the parser of TensorRT 8.5: valid, of its operators alone, and the same detector."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from builder import load_detector
from builder.engines import EngineError
from builder.engines.onnx import write
from builder.engines.tensorrt import onnx_8, quantised_layers
from builder.operators import interface
from builder.operators.ms_deform_attn import reference_ms_deform_attn
from builder.pipeline.export import InputSpec, decompose_attention, export_detector, inputs_of, uses_operator
from builder.quantise.calibration import Range, Ranges
from builder.quantise.layers import replace_layers
from tests import shallow
from tests.builder.engines.tensorrt import windowed
from tests.toy_family import SMALL, ToyDetector

SPEC = InputSpec(96, 128, max_batch_size=2)
OPERATOR = torch.ops.codetr.ms_deform_attn.default
LAYER_NORM = torch.ops.aten.layer_norm.default
GROUP_NORM = torch.ops.aten.group_norm.default


def co_dino(shallow_config, checkpoint):
    return load_detector(shallow_config, checkpoint)


def rtdetrv2(*_):
    return load_detector(*shallow.rtdetrv2())


def detr(*_):
    return load_detector(*shallow.detr())


# RT-DETRv2 has the operator, DETR has none; Co-DINO has more of the same.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(co_dino, id="co_dino", marks=pytest.mark.slow),
        pytest.param(rtdetrv2, id="rtdetrv2"),
        pytest.param(detr, id="detr"),
    ],
)
def detector(request, shallow_config, checkpoint):
    return request.param(shallow_config, checkpoint).deploy()


@pytest.fixture(scope="module")
def program(detector):
    return export_detector(detector, SPEC)


def check_operators(model):
    """Check the model against every rule that TensorRT 8.5 is known to have."""
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 16
    assert model.ir_version == 8
    nodes = [node for node in model.graph.node if node.domain == ""]
    assert not {node.op_type for node in nodes} & onnx_8.UNKNOWN
    assert not [node for node in nodes if node.op_type == "Cast" and node.attribute[0].i == TensorProto.UINT8]
    constants = {tensor.name for tensor in model.graph.initializer}
    assert not [node.name for node in model.graph.node if set(node.input) <= constants], "a constant is computed"
    assert all(node.input[1] in constants for node in nodes if node.op_type == "TopK")
    assert not [node.name for node in nodes if node.op_type == "Shape" and node.attribute], "start and end are ignored"
    assert not [node.name for node in nodes if node.op_type == "InstanceNormalization"], "its plugin needs cuDNN"
    opened = [value.name for value in model.graph.input if value.type.tensor_type.shape.dim[0].dim_param]
    for name in opened[1:]:
        assert [node.op_type for node in nodes if name in node.input] == ["Reshape"], "its batch is another"
    assert not [node.name for node in nodes if node.op_type in ("GatherElements", "GatherND")], "it gets them wrong"
    makers = {name: node for node in nodes for name in node.output}
    for each in [makers[node.input[0]] for node in nodes if node.op_type == "Relu" and node.input[0] in makers]:
        before = {makers[name].op_type for name in each.input if name in makers}
        assert each.op_type != "Add" or "MatMul" not in before, f"the ReLU behind {each.name} would be lost"


@pytest.fixture(scope="module")
def with_plugin_nodes(program, tmp_path_factory):
    """The file that TensorRT 8.5 gets."""
    path = tmp_path_factory.mktemp("plugin") / "model.onnx"
    assert onnx_8.build(program, path) == [], "of one precision, it has no names to keep"
    return path


@pytest.fixture(scope="module")
def written_out(program, with_plugin_nodes, tmp_path_factory):
    """What ONNX Runtime can run: that file, if it has no plugin node, or another one."""
    if not uses_operator(program):
        return with_plugin_nodes
    path = tmp_path_factory.mktemp("written_out") / "model.onnx"
    norms = {LAYER_NORM: onnx_8.layer_norm, GROUP_NORM: onnx_8.group_norm}
    plain = decompose_attention(program, others=norms)
    write(plain, path, None, onnx_8.revise, {OPERATOR: reference_ms_deform_attn})
    return path


def test_with_plugin_nodes_it_is_valid_and_of_known_operators(program, with_plugin_nodes):
    model = onnx.load(with_plugin_nodes)
    check_operators(model)
    assert tuple(value.name for value in model.graph.input) == inputs_of(program)
    found = sum(node.op_type == interface.PLUGIN_NAME for node in model.graph.node)
    assert found == sum(node.target is OPERATOR for node in program.graph.nodes)
    assert (found > 0) == uses_operator(program)
    assert not [node for node in model.graph.node if node.op_type == "GridSample"]


def test_with_the_operator_written_out_it_is_the_detector(detector, program, written_out):
    check_operators(onnx.load(written_out))
    session = onnxruntime.InferenceSession(str(written_out), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, SPEC.height, SPEC.width, 3), dtype=np.uint8)
    sizes = np.array([[SPEC.height, SPEC.width], [70, 121]], np.int32)
    for batch in (1, 2):
        inputs = {"images": images[:batch], "image_sizes": sizes[:batch]}
        fed = {name: inputs[name] for name in inputs_of(program)}
        boxes, scores, labels = session.run(["boxes", "scores", "labels"], fed)
        expected = [tensor.numpy() for tensor in detector(*map(torch.from_numpy, inputs.values()))]
        np.testing.assert_allclose(scores, expected[1], atol=1e-4)
        np.testing.assert_allclose(boxes, expected[0], atol=1e-4)
        np.testing.assert_array_equal(labels, expected[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_written_out(dtype, affine):
    """Values whose squares half precision cannot hold."""
    generator = torch.manual_seed(0)
    x = (torch.randn(3, 5, 7, generator=generator) * 400 + 1000).to(dtype)
    weight, bias = (torch.randn(5, 7, generator=generator).to(dtype) if affine else None for _ in range(2))
    args = [None if each is None else each.double() for each in (weight, bias)]
    expected = torch.nn.functional.layer_norm(x.double(), (5, 7), *args)
    found = onnx_8.layer_norm(x, (5, 7), weight, bias)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=1e-4 if dtype == torch.float32 else 4e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_written_out(dtype, affine):
    generator = torch.manual_seed(0)
    x = (torch.randn(2, 6, 4, 5, generator=generator) * 400 + 1000).to(dtype)
    weight, bias = (torch.randn(6, generator=generator).to(dtype) if affine else None for _ in range(2))
    args = [None if each is None else each.double() for each in (weight, bias)]
    expected = torch.nn.functional.group_norm(x.double(), 3, *args)
    found = onnx_8.group_norm(x, 3, weight, bias)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=1e-4 if dtype == torch.float32 else 4e-3, rtol=0)


def model_of(nodes, constants=()):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])
    tensors = [numpy_helper.from_array(np.array(value), name) for name, value in dict(constants).items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def node(operator, inputs, outputs="y", **attributes):
    return helper.make_node(
        operator, inputs, outputs.split(), "here" if outputs == "y" else f"before_{outputs}", **attributes
    )


X = np.arange(24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        pytest.param([node("ReduceMax", ["x", "axes"])], {"axes": [1]}, id="axes become an attribute"),
        pytest.param([node("ReduceMean", ["x"])], {}, id="of all axes"),
        pytest.param([node("ReduceSum", ["x", "axes"])], {"axes": [0]}, id="axes that were an input before"),
        pytest.param(
            [node("Split", ["x"], "a b", axis=1, num_outputs=2), node("Sub", ["a", "b"])], {}, id="equal parts"
        ),
        pytest.param([node("Pad", ["x", "pads"])], {"pads": [1, 0, 0, 2]}, id="a border"),
        pytest.param(
            [
                node("Shape", ["x"], "rows", start=0, end=1),
                node("Concat", ["rows", "rest"], "sizes", axis=0),
                node("Reshape", ["x", "sizes"]),
            ],
            {"rest": [6]},
            id="one size of a shape",
        ),
        pytest.param(
            [
                node("Shape", ["x"], "columns", start=-1),
                node("Concat", ["columns", "rest"], "sizes", axis=0),
                node("Reshape", ["x", "sizes"]),
            ],
            {"rest": [-1]},
            id="the last size of a shape",
        ),
        pytest.param(
            [node("Add", ["a", "b"], "c"), node("Mul", ["x", "c"])],
            {"a": np.float32(1), "b": np.float32(2)},
            id="a computed constant",
        ),
    ],
)
def test_a_lowered_node_means_the_same(nodes, constants):
    model = model_of(nodes, constants)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": X})[0]
    onnx_8.revise(model)
    check_operators(model)
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": X})[0]
    np.testing.assert_array_equal(before, after)


WEIGHT = np.linspace(-1, 1, 36, dtype=np.float32).reshape(6, 6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_relu_of_a_product_with_a_bias_is_a_clip(dtype):
    """8.5.3 fuses bias and ReLU, then product and bias, and loses the ReLU."""
    nodes = [
        node("Cast", ["x"], "a", to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))),
        node("MatMul", ["a", "weight"], "b"),
        node("Add", ["bias", "b"], "c"),
        node("Relu", ["c"], "d"),
        node("MatMul", ["d", "weight"], "e"),
        node("Add", ["e", "bias"], "f"),
        node("Relu", ["f"], "g"),
        node("Cast", ["g"], to=TensorProto.FLOAT),
    ]
    constants = {"weight": WEIGHT.astype(dtype), "bias": np.linspace(3, -3, 6).astype(dtype)}
    model = model_of(nodes, constants)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": X})[0]
    assert 0 < (before == 0).sum() < before.size
    onnx_8.revise(model)
    check_operators(model)
    assert [each.op_type for each in model.graph.node].count("Clip") == 2
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": X})[0]
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([node("Relu", ["x"])], id="alone"),
        pytest.param([node("Mul", ["x", "x"], "a"), node("Add", ["a", "x"], "b"), node("Relu", ["b"])], id="of a sum"),
        pytest.param([node("MatMul", ["x", "weight"], "a"), node("Relu", ["a"])], id="of a product without a bias"),
    ],
)
def test_another_relu_stays(nodes):
    model = model_of(nodes, {"weight": WEIGHT})
    onnx_8.revise(model)
    onnx.checker.check_model(model)
    assert model.graph.node[-1].op_type == "Relu"


def test_little_does_not_become_much(monkeypatch):
    nodes = [node("Expand", ["a", "shape"], "c"), node("Add", ["x", "c"])]
    constants = {"a": np.float32(1), "shape": [4, 6]}
    model = model_of(nodes, constants)
    monkeypatch.setattr(onnx_8, "MAX_FOLDED_BYTES", 95)
    onnx_8.fold(model)
    assert [each.op_type for each in model.graph.node] == ["Expand", "Add"]
    monkeypatch.setattr(onnx_8, "MAX_FOLDED_BYTES", 96)
    onnx_8.fold(model)
    assert [each.op_type for each in model.graph.node] == ["Add"]
    assert [tensor.name for tensor in model.graph.initializer] == ["c"], "what nothing reads is left out"


@pytest.mark.parametrize(
    ("nodes", "constants", "message"),
    [
        ([node("Hardmax", ["x"])], {}, r"does not have Hardmax \(node here\)"),
        ([node("Cast", ["x"], to=TensorProto.UINT8)], {}, r"does not cast to uint8 \(node here\)"),
        ([node("Pad", ["x", "pads", "", "axes"])], {"pads": [1, 1], "axes": [0]}, r"here \(Pad\) has axes"),
        (
            [node("Resize", ["x", "", "scales"], mode="linear", antialias=1)],
            {"scales": np.array([1, 2], np.float32)},
            r"here \(Resize\) has antialias",
        ),
        (
            [node("Cast", ["x"], "axes", to=TensorProto.INT64), node("ReduceMax", ["x", "axes"])],
            {},
            r"here \(ReduceMax\) computes its axes",
        ),
        ([node("Gelu", ["x"], domain="com.microsoft")], {}, r"does not have Gelu \(node here\)"),
    ],
)
def test_what_the_parser_cannot_read_is_named(nodes, constants, message):
    with pytest.raises(EngineError, match=message):
        onnx_8.revise(model_of(nodes, constants))


def test_a_quantised_file_is_float32_and_names_what_stays_so(tmp_path):
    torch.manual_seed(0)
    detector = ToyDetector(SMALL).eval().requires_grad_(False).set_precision(torch.float16)
    ranges = {"classify": Ranges(Range(0.0, 1.0), Range(-1.0, 1.0))}
    replace_layers(detector, quantised_layers({"classify": detector.classify}, ranges, "int8"))
    kept = onnx_8.build(export_detector(detector, InputSpec(64, 96)), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 2, "of weights too, which stay floating"
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert TensorProto.FLOAT16 not in constants.values()
    assert all(node.input[1] in constants for node in model.graph.node if node.op_type == "QuantizeLinear")
    by_name = {node.name: node.op_type for node in model.graph.node}
    assert "Conv" not in {by_name[name] for name in kept}
    assert {"Sigmoid", "TopK"} <= {by_name[name] for name in kept}, "scores were float32"
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    sizes = np.array([[64, 96]], np.int32)
    scores = session.run(["scores"], {"images": images, "image_sizes": sizes})[0]
    expected = detector(torch.from_numpy(images), torch.from_numpy(sizes))[1]
    np.testing.assert_allclose(scores, expected, atol=2e-3)


def test_window_attention_is_a_node_a_block(tmp_path):
    onnx_8.build(windowed.exported(), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    check_operators(model)
    nodes = [node for node in model.graph.node if node.op_type == interface.WINDOW_PLUGIN_NAME]
    assert len(nodes) == 2
    constants = {tensor.name for tensor in model.graph.initializer}
    assert all([name in constants for name in node.input] == [False, True, True] for node in nodes)
