"""ONNX with plugin nodes: the nodes' form, and their meaning through an evaluation of the operator in Python."""

import shlex
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import nn
from typer.testing import CliRunner

from builder.engines import EngineError
from builder.engines.tensorrt import plugin_onnx, quantised_layers
from builder.operators import interface
from builder.operators.ms_deform_attn import ms_deform_attn, reference_ms_deform_attn
from builder.pipeline.build import BuildOptions, write_plugin_onnx
from builder.pipeline.export import InputSpec, decompose_attention, export_detector, uses_operator
from builder.quantise.calibration import Range, Ranges
from builder.quantise.layers import replace_layers
from builder.variants import VARIANTS, get_variant
from codetr.cli import app
from tests.builder.engines.tensorrt import windowed
from tests.smallest import SMALLEST
from tests.toy_family import SMALL, ToyDetector

SIZES = [4, 6, 2, 3]


class CodetrMsDeformAttn(OpRun):
    op_domain = plugin_onnx.DOMAIN

    def _run(
        self, value, reference_points, offsets, logits, valid, spatial_shapes=None, plugin_version=None,
        plugin_namespace=None,
    ):  # fmt: skip  # the evaluator passes attributes by these names
        tensors = [torch.from_numpy(array.copy()) for array in (value, reference_points, offsets, logits)]
        return (reference_ms_deform_attn(*tensors, list(spatial_shapes), torch.from_numpy(valid.copy())).numpy(),)


class Attention(nn.Module):
    def forward(self, value, reference_points, offsets, logits, valid):
        return ms_deform_attn(value, reference_points, offsets, logits, SIZES, valid)


def plugin_nodes(path):
    return [node for node in onnx.load(path).graph.node if node.domain == plugin_onnx.DOMAIN]


def attributes(node):
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


@pytest.fixture(
    scope="module",
    params=[pytest.param("fp32", marks=pytest.mark.slow), pytest.param("fp16", marks=pytest.mark.engine)],
)
def written(tmp_path_factory, request):
    """What `codetr build --plugin-nodes` writes for a small detector, what it prints, and the asked precision."""
    folder = tmp_path_factory.mktemp("plugin")
    arguments = ["smallest", "--random-weights", "--plugin-nodes", "--precision", request.param]
    sizes = ["--height", "64", "--width", "96", "--batch", "2", "--repository", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "smallest", SMALLEST)
        done = CliRunner().invoke(app, ["build", *arguments, *sizes], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return SimpleNamespace(path=folder / plugin_onnx.FILE_NAME, output=done.output, precision=request.param)


def test_the_file_is_valid_with_its_own_domain(written):
    model = onnx.load(written.path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import}[plugin_onnx.DOMAIN] == 1
    assert {node.domain for node in model.graph.node} == {"", plugin_onnx.DOMAIN}


def test_one_node_a_layer_with_the_levels_sizes(written):
    nodes = plugin_nodes(written.path)
    assert len(nodes) == 2  # an encoder layer, a decoder layer
    for node in nodes:
        assert len(node.output) == 1
        assert attributes(node) == {
            "spatial_shapes": [16, 24, 8, 12],
            "plugin_version": b"1",
            "plugin_namespace": b"",
        }


def test_names_are_the_creators(written):
    nodes = plugin_nodes(written.path)
    assert {node.op_type for node in nodes} == {interface.PLUGIN_NAME}
    given = attributes(nodes[0])
    assert given.pop("plugin_version").decode() == interface.PLUGIN_VERSION
    assert given.pop("plugin_namespace").decode() == interface.PLUGIN_NAMESPACE
    assert list(given) == [interface.SPATIAL_SHAPES_FIELD]


def test_inputs_have_the_types_that_the_plugin_takes(written):
    """As `supportsFormatCombination` of plugin_src/tensorrt_plugin.cpp: T, float, T, T, int32; T comes out."""
    graph = onnx.load(written.path).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    asked = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16}[written.precision]
    for node in plugin_nodes(written.path):
        expected = [asked, onnx.TensorProto.FLOAT, asked, asked, onnx.TensorProto.INT32]
        assert [types[name] for name in node.input] == expected
        assert [types[name] for name in node.output] == [asked]


def test_the_command_says_how_trtexec_builds_the_plan(written):
    line = written.output.rstrip().splitlines()[-1]
    folder = written.path.parent
    assert shlex.split(line) == [
        "trtexec",
        f"--onnx={folder}/model.onnx",
        "--stronglyTyped",
        "--staticPlugins=build/plugin/libcodetr_plugin.so",
        "--minShapes=images:1x64x96x3,image_sizes:1x2",
        "--optShapes=images:2x64x96x3,image_sizes:2x2",
        "--maxShapes=images:2x64x96x3,image_sizes:2x2",
        f"--saveEngine={folder}/model.plan",
        "--profilingVerbosity=detailed",
        "--skipInference",
    ]
    static = plugin_onnx.trtexec_line(written.path, InputSpec(64, 96, 2, dynamic_batch=False))
    assert "Shapes" not in static


def test_node_means_the_operator(tmp_path):
    generator = torch.Generator().manual_seed(3)
    inputs = (
        torch.randn(2, 30, 2, 4, generator=generator),
        torch.rand(2, 5, 2, 4, generator=generator),
        torch.randn(2, 5, 2, 2, 3, 2, generator=generator),
        torch.randn(2, 5, 2, 2, 3, generator=generator),
        torch.tensor([[[4, 6], [2, 3]], [[2, 5], [1, 3]]], dtype=torch.int32),
    )
    path = tmp_path / "attention.onnx"
    names = ["value", "reference_points", "offsets", "logits", "valid"]
    exported = torch.onnx.export(
        torch.export.export(Attention(), inputs, strict=True),
        (),
        dynamo=True,
        opset_version=18,
        input_names=names,
        custom_translation_table=plugin_onnx.TRANSLATIONS,
        verbose=False,
    )
    exported.save(str(path))
    assert len(plugin_nodes(path)) == 1
    evaluator = ReferenceEvaluator(str(path), new_ops=[CodetrMsDeformAttn])
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    np.testing.assert_allclose(evaluator.run(None, feed)[0], Attention()(*inputs).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("engine", "existing", "message"), [("torch", False, "use the onnx engine"), ("onnx", True, "exists")]
)
def test_refusals_are_named(tmp_path, engine, existing, message):
    if existing:
        (tmp_path / plugin_onnx.FILE_NAME).touch()
    options = BuildOptions(get_variant("co_dino_r50_12e"), InputSpec(64, 64), engine=engine)
    with pytest.raises(EngineError, match=message):
        write_plugin_onnx(options, tmp_path)


@pytest.mark.parametrize("name", ["detr_r50", "rtdetrv2_r18vd_dsp"])
def test_a_graph_without_the_operator_has_no_plugin_node(tmp_path, name):
    with pytest.raises(EngineError, match=f"{name} has no deformable attention as our operator"):
        write_plugin_onnx(BuildOptions(get_variant(name), InputSpec(64, 64)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "type_"), [("int8", onnx.TensorProto.INT8), ("fp8", onnx.TensorProto.FLOAT8E4M3FN)])
def test_a_quantised_file_has_an_opset_that_rounds_half_precision(tmp_path, kind, type_):
    detector = ToyDetector(SMALL).eval().requires_grad_(False).set_precision(torch.float16)
    ranges = {"classify": Ranges(Range(0.0, 1.0), Range(-1.0, 1.0))}
    replace_layers(detector, quantised_layers({"classify": detector.classify}, ranges, kind))
    plugin_onnx.build(export_detector(detector, InputSpec(64, 96)), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == 19
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(nodes) == 2
    assert {constants[node.input[2]] for node in nodes} == {type_}
    assert {constants[node.input[1]] for node in nodes} == {onnx.TensorProto.FLOAT16}


@pytest.fixture(scope="module", params=[True, False], ids=["a bias", "no bias"])
def windows(request, tmp_path_factory):
    """A network of window attention in half precision, and its file."""
    path = tmp_path_factory.mktemp("windows") / "model.onnx"
    plugin_onnx.build(windowed.exported(bias=request.param), path)
    return SimpleNamespace(path=path, bias=request.param)


def test_window_attention_is_a_node_a_block(windows):
    model = onnx.load(windows.path)
    onnx.checker.check_model(model, full_check=True)
    nodes = plugin_nodes(windows.path)
    assert [node.op_type for node in nodes] == [interface.WINDOW_PLUGIN_NAME] * 2
    finding = {"plugin_version": b"1", "plugin_namespace": b""}
    assert [attributes(node) for node in nodes] == [
        {interface.WINDOW_SIZE_FIELD: 7, interface.SHIFT_FIELD: shift, **finding} for shift in (0, 3)
    ]
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in nodes:
        assert len(node.input) == (3 if windows.bias else 2)
        assert {types[name] for name in (*node.input, *node.output)} == {onnx.TensorProto.FLOAT16}
        assert [shapes[name] for name in node.input[1:]] == [[169, 2], *([[192]] if windows.bias else [])]


def test_window_nodes_mean_the_operator(windows):
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    evaluator = ReferenceEvaluator(str(windows.path), new_ops=[windowed.CodetrWindowAttention])
    for batch in (1, 2):
        found = evaluator.run(["boxes", "scores"], {"images": images[:batch]})
        expected = windowed.Windowed(torch.float16, bias=windows.bias)(torch.from_numpy(images[:batch]), None)
        np.testing.assert_allclose(found[0], expected[0].numpy(), atol=2e-2)  # features of norms, in half precision
        np.testing.assert_allclose(found[1], expected[1].numpy(), atol=2e-2)


@pytest.mark.parametrize(
    ("options", "window_plugin"),
    [
        pytest.param({"dtype": torch.float32}, True, id="float32"),
        pytest.param({"window": 8}, True, id="a window that the kernel does not have"),
        pytest.param({}, False, id="written out"),
    ],
)
def test_without_the_plugin_window_attention_is_written_out(options, window_plugin):
    program = decompose_attention(windowed.exported(**options), window_plugin=window_plugin)
    assert not uses_operator(program)
    assert sum("softmax" in str(node.target) for node in program.graph.nodes) == 2
