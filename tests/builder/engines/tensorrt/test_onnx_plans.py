"""Plans of ONNX files, built and run on a GPU by the TensorRT of another Python, against references of the same files.

`CODETR_TENSORRT_PYTHON` names that Python, `CODETR_PLUGIN` the plugin that was built for its TensorRT.
"""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from builder.checkpoint import load_detector
from builder.engines.eager import EagerDetector
from builder.engines.tensorrt import TensorRTSettings, onnx_8, plugin_library
from builder.engines.tensorrt.child import TensorRTPython
from builder.engines.tensorrt.onnx_8_rows import gather_rows
from builder.engines.tensorrt.onnx_frontend import build_plan
from builder.engines.tensorrt.plans import run_plan
from builder.engines.tensorrt.precision import product_layers
from builder.operators import interface
from builder.operators.ms_deform_attn import reference_ms_deform_attn
from builder.operators.window_attention import reference_window_attention
from builder.pipeline.export import InputSpec, export_detector
from builder.pipeline.samples import sample_images
from builder.pipeline.verify import fit
from builder.variants import get_variant
from demo import WEIGHTS
from tests.builder.engines.tensorrt import windowed

SIDE, BATCH = 64, 2
SPEC = InputSpec(SIDE, SIDE, max_batch_size=BATCH)
# Levels whose tokens, times 8 heads of 32 channels, are the image's 64 x 64 x 3 pixels.
SHAPES, HEADS, DIM, QUERIES, POINTS = [6, 6, 3, 4], 8, 32, 50, 4
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
OUTPUTS = {"boxes": (TensorProto.FLOAT, 3), "scores": (TensorProto.FLOAT, 2), "labels": (TensorProto.INT32, 2)}


@pytest.fixture
def python():
    executable = os.environ.get("CODETR_TENSORRT_PYTHON")
    if executable is None:
        pytest.skip("CODETR_TENSORRT_PYTHON is not set: it names a Python that has TensorRT")
    return TensorRTPython(Path(executable))


def save(path, nodes, constants, batch):
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, SIDE, SIDE, 3])
    sizes = helper.make_tensor_value_info("image_sizes", TensorProto.INT32, [batch, 2])
    made = [helper.make_tensor_value_info(name, type_, [None] * rank) for name, (type_, rank) in OUTPUTS.items()]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", [images, sizes], made, initializers)
    opsets = [helper.make_opsetid("", 16), helper.make_opsetid("trt.plugins", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def node(operator, inputs, output, **attributes):
    return helper.make_node(operator, inputs.split(), [output], f"node_{output}", **attributes)


def small_detector(path, precision):
    """Write a product with the pixels in the precision, a sigmoid in float32 and the four highest, of any batch."""
    random = np.random.default_rng(0)
    dtype = np.dtype(precision)
    constants = {
        "flat": np.array([0, SIDE * SIDE * 3]),
        "scale": np.array(1 / 256, dtype),
        "weight": (random.normal(size=(SIDE * SIDE * 3, 24)) / 30).astype(dtype),
        "four": np.array([4]),
        "one": np.array([1]),
        "two": np.array([2]),
    }
    nodes = [
        node("Cast", "images", "pixels", to=TYPES[precision]),
        node("Reshape", "pixels flat", "rows"),
        node("Mul", "rows scale", "scaled"),
        node("MatMul", "scaled weight", "product"),
        node("Cast", "product", "wide", to=TensorProto.FLOAT),
        node("Sigmoid", "wide", "activated"),
        helper.make_node("TopK", ["activated", "four"], ["scores", "places"], "node_scores"),
        node("Cast", "places", "labels", to=TensorProto.INT32),
        node("Cast", "image_sizes", "sizes", to=TensorProto.FLOAT),
        helper.make_node("Split", ["sizes"], ["heights", "widths"], "node_split", axis=1),
        node("Concat", "heights widths heights widths", "corners", axis=1),
        node("Unsqueeze", "corners one", "corner"),
        node("Unsqueeze", "scores two", "column"),
        node("Mul", "column corner", "boxes"),
    ]
    return save(path, nodes, constants, "batch")


def attention(path, precision):
    """Write one plugin node of two images on constants, its values the pixels and its valid shapes the sizes."""
    random = np.random.default_rng(1)
    dtype, levels = np.dtype(precision), len(SHAPES) // 2
    constants = {
        "reference_points": random.uniform(-0.1, 1.1, (BATCH, QUERIES, levels, 2)).astype(np.float32),
        "sampling_offsets": random.normal(size=(BATCH, QUERIES, HEADS, levels, POINTS, 2)).astype(dtype),
        "attention_logits": random.normal(size=(BATCH, QUERIES, HEADS, levels, POINTS)).astype(dtype),
        "tokens": np.array([BATCH, -1, HEADS, DIM]),
        "scale": np.array(1 / 64, dtype),
        "one": np.array([1]),
        "twice": np.array([1, levels, 1]),
        "start": np.array([0]),
        "end": np.array([4]),
        "axis": np.array([2]),
    }
    version, namespace = interface.PLUGIN_VERSION, interface.PLUGIN_NAMESPACE
    fields = {"spatial_shapes": SHAPES, "plugin_version": version, "plugin_namespace": namespace}
    nodes = [
        node("Cast", "images", "pixels", to=TYPES[precision]),
        node("Mul", "pixels scale", "scaled"),
        node("Reshape", "scaled tokens", "value"),
        node("Unsqueeze", "image_sizes one", "sizes"),
        node("Tile", "sizes twice", "valid_shapes"),
        node(interface.PLUGIN_NAME, " ".join(interface.INPUT_NAMES), "attended", domain="trt.plugins", **fields),
        node("Cast", "attended", "wide", to=TensorProto.FLOAT),
        node("Slice", "wide start end axis", "boxes"),
        node("ReduceMax", "wide", "scores", axes=[2], keepdims=0),
        node("ArgMax", "wide", "places", axis=2, keepdims=0),
        node("Cast", "places", "labels", to=TensorProto.INT32),
    ]
    return save(path, nodes, constants, BATCH), constants


WINDOW, SHIFT, WINDOW_HEADS = 7, 3, 2
MAP = [8, 8, 3 * WINDOW_HEADS * 32]  # tokens of which a picture's 64 x 64 x 3 pixels are query, key and value


def windows(path):
    """Write one plugin node of any batch in half precision, its query, key and value the pixels."""
    random = np.random.default_rng(2)
    constants = {
        "bias_table": random.normal(size=((2 * WINDOW - 1) ** 2, WINDOW_HEADS)).astype(np.float16),
        "qkv_bias": random.normal(size=MAP[-1]).astype(np.float16),
        "map": np.array([0, *MAP]),
        "tokens": np.array([0, MAP[0] * MAP[1], -1]),
        "scale": np.array(1 / 64, np.float16),
        "start": np.array([0]),
        "end": np.array([4]),
        "axis": np.array([2]),
        "nothing": np.array([0], np.int32),
    }
    fields = {"window_size": WINDOW, "shift": SHIFT, "plugin_version": "1", "plugin_namespace": ""}
    nodes = [
        node("Cast", "images", "pixels", to=TensorProto.FLOAT16),
        node("Mul", "pixels scale", "scaled"),
        node("Reshape", "scaled map", "qkv"),
        node(
            interface.WINDOW_PLUGIN_NAME,
            " ".join(interface.WINDOW_INPUT_NAMES),
            "attended",
            domain="trt.plugins",
            **fields,
        ),
        node("Reshape", "attended tokens", "narrow"),
        node("Cast", "narrow", "wide", to=TensorProto.FLOAT),
        node("Slice", "wide start end axis", "boxes"),
        node("ReduceMax", "wide", "scores", axes=[2], keepdims=0),
        node("Add", "image_sizes nothing", "labels"),
    ]
    return save(path, nodes, constants, "batch"), constants


def inputs(batch):
    random = np.random.default_rng(batch)
    images = random.integers(0, 256, (batch, SIDE, SIDE, 3), dtype=np.uint8)
    return images, np.array([[6 - i, 4 - i] for i in range(batch)], np.int32)


def best_rows(path):
    """Write the four brightest of a picture's rows, gathered as every detector gathers its proposals, of any batch."""
    constants = {
        "rows_shape": np.array([0, -1, 4], np.int64),
        "last": np.array([2], np.int64),
        "count": np.array([4], np.int64),
        "repeat": np.array([1, 1, 4], np.int64),
    }
    nodes = [
        node("Cast", "images", "pixels", to=TensorProto.FLOAT),
        node("Reshape", "pixels rows_shape", "rows"),
        node("ReduceSum", "rows last", "sums", keepdims=0),
        helper.make_node("TopK", ["sums", "count"], ["scores", "numbers"], "node_topk", axis=1),
        node("Unsqueeze", "numbers last", "column"),
        node("Expand", "column repeat", "repeated"),
        node("GatherElements", "rows repeated", "boxes", axis=1),
        node("Cast", "numbers", "labels", to=TensorProto.INT32),
    ]
    save(path, nodes, constants, "batch")
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    gather_rows(model)
    onnx.save(model, path)
    return path


def check_rows(images, boxes, scores, labels):
    rows = images.reshape(len(images), -1, 4).astype(np.float32)
    np.testing.assert_array_equal(boxes, np.take_along_axis(rows, labels[..., None], 1))
    np.testing.assert_array_equal(scores, np.sort(rows.sum(2))[:, :-5:-1])


# Sums of 12288 products in half precision, of terms to 0.1; the exact ones differ by the order of the sums.
TOLERANCE = {"float32": 1e-5, "float16": 5e-3}


@pytest.mark.parametrize("precision", TYPES)
def test_the_small_detector_is_onnx(tmp_path, precision):
    """What the plan is compared with, so that a fault of the file shows without a GPU."""
    model = onnx.load(small_detector(tmp_path / "a.onnx", precision))
    onnx.checker.check_model(model, full_check=True)
    boxes, scores, labels = ReferenceEvaluator(model).run(
        None, dict(zip(("images", "image_sizes"), inputs(2), strict=True))
    )
    assert (boxes.shape, scores.shape, labels.shape) == ((2, 4, 4), (2, 4), (2, 4))
    assert (np.diff(scores) <= 0).all()
    np.testing.assert_array_equal(
        boxes, scores[..., None] * np.array([[6, 4, 6, 4], [5, 3, 5, 3]])[:, None].astype(np.float32)
    )


@pytest.mark.gpu
@pytest.mark.parametrize("precision", TYPES)
def test_a_detector_runs_at_every_batch(tmp_path, python, precision):
    path, plan = small_detector(tmp_path / "a.onnx", precision), tmp_path / "a.plan"
    settings = TensorRTSettings(timing_cache=tmp_path / "cache", workspace_gib=1.0)
    report = build_plan(path, plan, SPEC, precision, settings, python=python)
    assert {type_ for _, type_ in product_layers(report.layers)} == {precision}
    batches = [inputs(2), inputs(1), inputs(2)]
    reference = ReferenceEvaluator(str(path))
    for graphs in ([], [1, 2]):
        for (images, sizes), found in zip(batches, run_plan(plan, batches, python=python, graphs=graphs), strict=True):
            boxes, scores, labels = reference.run(None, {"images": images, "image_sizes": sizes})
            np.testing.assert_allclose(found.scores, scores, atol=TOLERANCE[precision])
            np.testing.assert_allclose(found.boxes, boxes, atol=6 * TOLERANCE[precision])
            assert found.labels.dtype == np.int32
            assert (found.labels == labels).mean() >= (
                1 if precision == "float32" else 0.7
            )  # close scores may change places


def two_products(path, precision):
    """Write two matrix products, a bias and a ReLU behind each, of the two values of a picture's size, of any batch."""
    random, dtype = np.random.default_rng(3), {"float32": np.float32, "float16": np.float16}[precision]
    constants = {
        "row": np.array([0, 1, 2], np.int64),
        "first": random.normal(size=(2, 32)).astype(dtype),
        "first_bias": random.normal(size=32).astype(dtype),
        "second": random.normal(size=(32, 4)).astype(dtype),
        "second_bias": np.array([-100, 100, -100, 100], dtype),
        "last": np.array([2], np.int64),
        "nothing": np.array([0], np.int32),
    }
    nodes = [
        node("Cast", "image_sizes", "sizes", to=TYPES[precision]),
        node("Reshape", "sizes row", "rows"),
        node("MatMul", "rows first", "product"),
        node("Add", "product first_bias", "sum"),
        node("Relu", "sum", "hidden"),
        node("MatMul", "hidden second", "second_product"),
        node("Add", "second_product second_bias", "second_sum"),
        node("Relu", "second_sum", "positive"),
        node("Cast", "positive", "boxes", to=TensorProto.FLOAT),
        node("ReduceMax", "boxes", "scores", axes=[2], keepdims=0),
        node("Add", "image_sizes nothing", "labels"),
    ]
    save(path, nodes, constants, "batch")
    model, expected = onnx.load(path), ReferenceEvaluator(str(path))
    onnx_8.clip_after_bias(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path, expected


@pytest.mark.parametrize("precision", TYPES)
def test_two_products_are_onnx(tmp_path, precision):
    path, expected = two_products(tmp_path / "a.onnx", precision)
    for batch in (1, BATCH):
        given = dict(zip(("images", "image_sizes"), inputs(batch), strict=True))
        before, after = expected.run(None, given), ReferenceEvaluator(str(path)).run(None, given)
        np.testing.assert_array_equal(before[0], after[0])
        assert 0 < (after[0] == 0).sum() < after[0].size


@pytest.mark.gpu
@pytest.mark.parametrize("precision", TYPES)
def test_a_plan_keeps_the_relu_of_a_product_with_a_bias(tmp_path, python, precision):
    (path, expected), plan = two_products(tmp_path / "a.onnx", precision), tmp_path / "a.plan"
    build_plan(path, plan, SPEC, precision, python=python)
    batches = [inputs(1), inputs(BATCH)]
    for (images, sizes), found in zip(batches, run_plan(plan, batches, python=python), strict=True):
        boxes = expected.run(None, {"images": images, "image_sizes": sizes})[0]
        np.testing.assert_allclose(found.boxes, boxes, rtol=5e-3 if precision == "float16" else 1e-4, atol=1e-2)


@pytest.mark.parametrize("batch", [1, 3])
def test_rows_are_gathered_from_their_own_picture(tmp_path, batch):
    images, sizes = inputs(batch)
    evaluator = ReferenceEvaluator(str(best_rows(tmp_path / "a.onnx")))
    check_rows(images, *evaluator.run(None, {"images": images, "image_sizes": sizes}))


@pytest.mark.gpu
def test_a_plan_gathers_rows_from_their_own_picture(tmp_path, python):
    path, plan = best_rows(tmp_path / "a.onnx"), tmp_path / "a.plan"
    build_plan(path, plan, SPEC, "float32", python=python)
    batches = [inputs(1), inputs(BATCH)]
    for (images, _), found in zip(batches, run_plan(plan, batches, python=python, graphs=[1, BATCH]), strict=True):
        check_rows(images, found.boxes, found.scores, found.labels)


@pytest.mark.gpu
def test_a_whole_detector_is_right_at_every_batch_in_any_order(tmp_path, python):
    """RT-DETRv2's demo: levels and boxes concatenated, rows gathered, our plugin. Its build takes six minutes."""
    detector = load_detector(get_variant("rtdetrv2_demo"), WEIGHTS["rtdetrv2"])
    spec, library = InputSpec(320, 480, max_batch_size=4), plugin_library()
    path, plan = tmp_path / "a.onnx", tmp_path / "a.plan"
    onnx_8.build(export_detector(detector, spec), path)
    build_plan(path, plan, spec, "float32", plugin=library, python=python)
    images, sizes = fit(sample_images(()).images[:4], spec.height, spec.width, detector.variant.rules.pixels)
    expected = EagerDetector(detector)(images, sizes)
    order = [4, 4, 1, 3, 3, 2, 1, 4]
    batches = [(images[:batch], sizes[:batch]) for batch in order]
    for graphs in ([], [1, 2, 3, 4]):
        results = run_plan(plan, batches, plugin=library, python=python, graphs=graphs)
        for batch, found in zip(order, results, strict=True):
            np.testing.assert_allclose(found.scores[:, :3], expected.scores[:batch, :3], atol=1e-3)
            np.testing.assert_allclose(found.boxes[:, :3], expected.boxes[:batch, :3], atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", TYPES)
def test_a_plugin_node_attends(tmp_path, python, precision):
    (path, constants), plan = attention(tmp_path / "a.onnx", precision), tmp_path / "a.plan"
    library = plugin_library()
    build_plan(path, plan, InputSpec(SIDE, SIDE, BATCH, dynamic_batch=False), precision, plugin=library, python=python)
    images, sizes = inputs(BATCH)
    (found,) = run_plan(plan, [(images, sizes)], plugin=library, python=python, graphs=[BATCH])
    value = torch.from_numpy(images).to(getattr(torch, precision)) * (1 / 64)
    expected = reference_ms_deform_attn(
        value.reshape(BATCH, -1, HEADS, DIM),
        *(torch.from_numpy(constants[name]) for name in interface.INPUT_NAMES[1:4]),
        SHAPES,
        torch.from_numpy(sizes)[:, None].repeat(1, len(SHAPES) // 2, 1),
    ).float()
    np.testing.assert_allclose(found.boxes, expected[..., :4], atol={"float32": 1e-5, "float16": 1e-2}[precision])
    np.testing.assert_allclose(found.scores, expected.amax(2), atol={"float32": 1e-5, "float16": 1e-2}[precision])


WINDOW_TOLERANCE = 2e-2  # values to 4 in half precision, weights that are rounded to it


def expected_windows(images, constants):
    """What `windows` makes of pictures, in float32."""
    qkv = (torch.from_numpy(images).half().reshape(len(images), *MAP) * (1 / 64)).float()
    table, bias = (torch.from_numpy(constants[name]).float() for name in ("bias_table", "qkv_bias"))
    return reference_window_attention(qkv, bias, table, WINDOW, SHIFT).flatten(1, 2)


def test_the_windows_are_onnx(tmp_path):
    """What the plan is compared with, so that a fault of the file shows without a GPU."""
    path, constants = windows(tmp_path / "a.onnx")
    images, sizes = inputs(2)
    evaluator = ReferenceEvaluator(str(path), new_ops=[windowed.CodetrWindowAttention])
    boxes, scores, labels = evaluator.run(None, {"images": images, "image_sizes": sizes})
    expected = expected_windows(images, constants)
    np.testing.assert_allclose(boxes, expected[..., :4], atol=WINDOW_TOLERANCE)
    np.testing.assert_allclose(scores, expected.amax(2), atol=WINDOW_TOLERANCE)
    np.testing.assert_array_equal(labels, sizes)


@pytest.mark.gpu
def test_a_plugin_node_attends_inside_windows_at_every_batch(tmp_path, python):
    (path, constants), plan = windows(tmp_path / "a.onnx"), tmp_path / "a.plan"
    library = plugin_library()
    build_plan(path, plan, SPEC, "float16", plugin=library, python=python)
    batches = [inputs(1), inputs(BATCH)]
    for (images, _), found in zip(
        batches, run_plan(plan, batches, plugin=library, python=python, graphs=[1, BATCH]), strict=True
    ):
        expected = expected_windows(images, constants)
        np.testing.assert_allclose(found.boxes, expected[..., :4], atol=WINDOW_TOLERANCE)
        np.testing.assert_allclose(found.scores, expected.amax(2), atol=WINDOW_TOLERANCE)


@pytest.mark.gpu
def test_what_the_parser_does_not_know_is_named(tmp_path, python):
    path, _ = attention(tmp_path / "a.onnx", "float32")
    model = onnx.load(path)
    next(each for each in model.graph.node if each.op_type == interface.PLUGIN_NAME).op_type = "NobodysPlugin"
    onnx.save(model, path)
    with pytest.raises(Exception, match=r"node node_attended \(NobodysPlugin\)"):
        build_plan(path, tmp_path / "a.plan", SPEC, "float32", python=python)
