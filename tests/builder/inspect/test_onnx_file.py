"""What ONNX Runtime makes of the ONNX file that the tests build once, and of small ones."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builder.engines.scopes import SCOPES
from builder.inspect.onnx_file import describe_onnx
from tests.conftest import HEIGHT, WIDTH


def inputs(batch=1, height=HEIGHT, width=WIDTH):
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    return images, np.array([[height, width]] * batch, np.int32)


@pytest.fixture(scope="module")
def found(repository):
    images, sizes = inputs(2)
    file = repository / "codetr_detector" / "1" / "model.onnx"
    return describe_onnx(file, images, sizes, 2, "title", {"torch": "2"})


def test_every_node_that_ran_is_a_part_with_its_time(found):
    assert found.has_times
    assert all(part.ms is not None and part.ms >= 0 for part in found.parts)
    assert found.total_ms > 0
    assert found.batch == 2
    assert {"LayerNormalization", "TopK"} <= {part.kind for part in found.parts}
    assert found.inputs == ("images", "image_sizes")
    assert found.outputs == ("boxes", "scores", "labels")


def test_parts_belong_to_modules(found):
    modules = {part.module.split(".")[0] for part in found.parts}
    assert {"backbone", "neck", "encoder", "proposals", "decoder", "class_head"} <= modules
    convolutions = [part.module for part in found.parts if part.kind == "Conv"]
    assert "backbone.patch_embed" in convolutions, "also in a layout of ONNX Runtime's own"
    assert not [part.module for part in found.parts if part.module.startswith("_")]


def test_fusions_tell_what_they_were_made_of(found):
    fused = [part for part in found.parts if part.kind == "SkipLayerNormalization"]
    assert fused
    assert all(any("Add" in each for each in part.made_of) for part in fused)
    assert all(any("LayerNormalization" in each for each in part.made_of) for part in fused)
    plain = [part for part in found.parts if part.kind == "Softmax"]
    assert all(part.made_of == () for part in plain)


def test_parts_are_connected(found):
    made = {name for part in found.parts for name in part.outputs}
    reading = [part for part in found.parts if set(part.inputs) & made]
    assert len(reading) > 0.8 * len(found.parts)
    assert {"boxes", "scores", "labels"} <= made


def test_weights_and_operations_are_counted(found, repository):
    file = repository / "codetr_detector" / "1" / "model.onnx"
    assert 0.8 * found.file_bytes < found.memory["weights"] + 600_000
    assert found.memory["weights"] < file.stat().st_size
    patch = next(part for part in found.parts if part.module == "backbone.patch_embed" and part.kind == "Conv")
    side = patch.details["kernel_shape"]
    assert side == "[4, 4]"
    shape = [int(size) for size in patch.shapes[0].split()[1].split("x")]
    assert patch.flops == 2 * np.prod(shape) * 3 * 4 * 4
    assert sum(part.flops or 0 for part in found.parts) > 1e7


def small(path, nodes, weights, output):
    value = helper.make_tensor_value_info
    for node in nodes:
        entry = node.metadata_props.add()
        entry.key, entry.value = SCOPES, repr(["", "head", node.name])
    graph = helper.make_graph(
        nodes, "g", [value("images", TensorProto.UINT8, [1, 4, 4, 3])], [value("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip  # in the order of the arguments
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_a_product_counts_each_multiplication_and_addition(tmp_path):
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], "cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
    ]
    path = small(tmp_path / "a.onnx", nodes, {"w": np.ones((3, 5), np.float32)}, [1, 4, 4, 5])
    images, sizes = inputs(1, 4, 4)
    found = describe_onnx(path, images, sizes, 1, "", {})
    (part,) = (part for part in found.parts if part.kind == "MatMul")
    assert (part.flops, part.weight_bytes, part.module, part.type) == (2 * 16 * 3 * 5, 60, "head", "float32")
    assert part.shapes == ("float32 1x4x4x5",)
    assert found.memory["weights"] == 60
