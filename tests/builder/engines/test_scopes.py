"""Modules of nodes, on the small detector's own ONNX file and on one made by hand."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from builder.engines import EngineError
from builder.engines.onnx import write
from builder.engines.scopes import SCOPES, mark_outputs, module_outputs, modules_of
from builder.pipeline.export import INPUT_NAMES, InputSpec, export_detector

ROOT = Path(__file__).parents[3]


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 3)

    def forward(self, x):
        return torch.relu(self.inner(x)) + 1


class Network(torch.nn.Module):
    """Two layers, of which the first is read twice; with the inputs and outputs of a detector."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(), Layer()])

    def forward(self, images, image_sizes):
        first = self.layers[0](images.float())
        return self.layers[1](first) + first, first.argmax(-1), image_sizes + 1


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("scopes") / "model.onnx"
    write(export_detector(Network(), InputSpec(32, 32)), path)
    return path


def test_a_file_tells_nothing_of_the_machine_that_made_it(file):
    content = file.read_bytes()
    assert b"layers.1.inner" in content
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content


def test_what_leaves_a_module(file):
    model = onnx.load(file)
    found = module_outputs(model, ["layers.*"])
    assert set(found) == {"layers.0", "layers.0.inner", "layers.1", "layers.1.inner"}
    makers = {name: node for node in model.graph.node for name in node.output}
    assert [makers[name].op_type for name in found["layers.0"]] == ["Add"]
    (name,) = found["layers.0.inner"]
    assert modules_of(makers[name])[-1] == "layers.0.inner"
    assert all(len(names) == 1 for names in found.values())


def test_marked_modules_become_outputs_and_change_no_other(file, tmp_path):
    model = onnx.load(file)
    marked = mark_outputs(model, ["layers.0", "layers.1"])
    onnx.save(model, tmp_path / "marked.onnx")
    onnx.checker.check_model(str(tmp_path / "marked.onnx"), full_check=True)
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    arrays = dict(zip(INPUT_NAMES, (images, np.array([[5, 6]], np.int32)), strict=True))
    plain = onnxruntime.InferenceSession(str(file)).run(None, arrays)
    session = onnxruntime.InferenceSession(str(tmp_path / "marked.onnx"))
    names = [output.name for output in session.get_outputs()]
    assert names[3:] == [*marked["layers.0"], *marked["layers.1"]]
    results = session.run(None, arrays)
    assert all((before == after).all() for before, after in zip(plain, results, strict=False))
    assert (results[3] + results[4] == results[0]).all()


def test_a_pattern_without_a_module_names_those_that_are_there(file):
    with pytest.raises(EngineError, match=r"no module is called encoder; there are layers\.0, layers\.1 and those in"):
        module_outputs(onnx.load(file), ["layers.0", "encoder"])


def test_integers_and_what_stays_inside_are_not_marked():
    def node(operator, source, target, *modules):
        made = helper.make_node(operator, [source], [target], name=target)
        entry = made.metadata_props.add()
        entry.key, entry.value = SCOPES, repr(["", *modules, operator])
        return made

    nodes = [
        node("Relu", "x", "inside", "a"),
        node("Cast", "inside", "number", "a"),
        node("Relu", "inside", "left", "a"),
        node("Relu", "left", "y"),
        node("Identity", "number", "z"),
    ]
    nodes[1].attribute.append(helper.make_attribute("to", TensorProto.INT32))
    value = helper.make_tensor_value_info
    floats = [value(name, TensorProto.FLOAT, [1]) for name in ("inside", "left")]
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", TensorProto.FLOAT, [1])],
        [value("y", TensorProto.FLOAT, [1]), value("z", TensorProto.INT32, [1])],
        value_info=[*floats, value("number", TensorProto.INT32, [1])],
    )
    assert module_outputs(helper.make_model(graph), ["a"]) == {"a": ["left"]}
