"""What TensorRT's inspector tells, in the manner of releases 8 and 10, and how a plan comes to tell it."""

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from builder.engines import EngineError
from builder.engines.tensorrt import plan_child
from builder.engines.tensorrt.child import TensorRTPython
from builder.engines.tensorrt.plans import inspect_plan, read_plan
from builder.inspect.plan_file import describe_plan, origins_of, type_of

LAYERS = [
    {
        "Name": "node_conv + node_relu",
        "LayerType": "CaskConvolution",
        "ParameterType": "Convolution",
        "Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": "Row major linear FP16 format"}],
        "Outputs": [{"Name": "y", "Dimensions": [1, 4, 8, 8], "Format/Datatype": "Channel major FP16 format"}],
        "Kernel": [3, 3],
        "Weights": {"Type": "Half", "Count": 108},
        "Bias": {"Type": "Half", "Count": 4},
        "TacticName": "sm80_xmma_fprop",
        "TacticValue": "0x1",
        "Metadata": "[ONNX Layer: node_conv]\x1e[ONNX Layer: node_relu]",
    },
    {
        "Name": "{ForeignNode[node_a...node_b]}",
        "LayerType": "Myelin",
        "Inputs": [{"Name": "y", "Dimensions": [1, 4], "Format/Datatype": "Half"}],
        "Outputs": [{"Name": "boxes", "Dimensions": [1, 300, 4], "Format/Datatype": "Float"}],
    },
]
TOLD = {
    "tensorrt": "10.16",
    "information": {"Layers": LAYERS, "Bindings": ["images", "boxes"]},
    "times_ms": {"node_conv + node_relu": 1.5, "{ForeignNode[node_a...node_b]}": 0.5},
    "activation_bytes": 4096,
}


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "model.plan").write_bytes(b"plan")
    return tmp_path / "model.plan"


def test_layers_are_parts(plan):
    modules = {"node_conv": "backbone.0", "node_relu": "backbone.1", "node_a": "head", "node_b": "head"}
    found = describe_plan(plan, TOLD, "title", {"python": "3.11"}, modules, 1)
    first, second = found.parts
    assert (first.kind, first.tactic, first.type) == ("CaskConvolution Convolution", "sm80_xmma_fprop", "float16")
    assert first.made_of == ("node_conv", "node_relu")
    assert (first.module, second.module) == ("backbone", "head")
    assert (first.weight_bytes, first.ms) == (224, 1.5)
    assert first.shapes == ("float16 1x4x8x8 Channel major FP16 format",)
    assert first.details["Kernel"] == "[3, 3]"
    assert second.inputs == first.outputs == ("y",)
    assert second.made_of == ("node_a", "node_b")
    assert (found.memory, found.total_ms) == ({"activations": 4096, "weights": 224}, 2.0)
    assert (found.inputs, found.outputs) == (("images",), ("boxes",))
    assert found.versions == {"python": "3.11", "tensorrt": "10.16"}


def test_a_plan_that_tells_nothing_is_named(plan):
    for layers in ([], ["conv", "relu"]):
        with pytest.raises(EngineError, match=r"model\.plan tells nothing of its layers; .* so build it again"):
            describe_plan(plan, TOLD | {"information": {"Layers": layers}}, "", {}, {}, 1)


@pytest.mark.parametrize(
    ("layer", "origins"),
    [
        ({"Name": "a + b"}, ("a", "b")),
        ({"Name": "PWN(a, b)"}, ("a", "b")),
        ({"Name": "{ForeignNode[a...b]}"}, ("a", "b")),
        ({"Name": "__myl_Fc", "Metadata": "[ONNX Layer: a]\x1e[ONNX Layer: a]"}, ("a",)),
        ({"Name": "/head/Conv"}, ("/head/Conv",)),
    ],
)
def test_what_a_layer_was_fused_of(layer, origins):
    assert origins_of(layer) == origins


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Row major linear FP16 format", "float16"), ("Half", "float16"), ("FP32", "float32"), ("Float", "float32"),
        ("BFloat16", "bfloat16"), ("Int8", "int8"), ("FP8", "fp8"), ("Int64", "int64"), ("Int32", "int32"),
        ("UInt8", "uint8"), ("Bool", "bool"), ("N/A due to dynamic shapes", ""),
    ],
)  # fmt: skip  # a table
def test_types_in_the_inspectors_words(text, name):
    assert type_of(text) == name


class Driver:
    """Copies what lies at an address of this process."""

    def download(self, destination, source, size, stream):
        ctypes.memmove(destination, source, size)


def test_outputs_that_were_kept_are_read_in_their_type():
    half, brain = np.arange(6, dtype=np.float16).reshape(2, 3), np.array([0x3F80, 0x4000], np.uint16)
    places, other = np.array([[3, 1]], np.int64), np.ones(2)
    arrays: dict[str, Any] = {
        "half": (half, "HALF"),
        "brain": (brain, "BF16"),
        "places": (places, "INT64"),
        "other": (other, "DOUBLE"),
    }
    runner = SimpleNamespace(
        unread={name: array.ctypes.data for name, (array, _) in arrays.items()},
        engine=SimpleNamespace(get_tensor_dtype=lambda name: f"DataType.{arrays[name][1]}"),
        context=SimpleNamespace(get_tensor_shape=lambda name: arrays[name][0].shape),
        driver=Driver(),
        stream=0,
        synchronize=lambda: None,
    )
    found = plan_child.read_unread(runner)
    assert set(found) == {"half", "brain", "places"}, "a type that nobody knows is left"
    assert found["half"].dtype == np.float32
    np.testing.assert_array_equal(found["half"], half)
    np.testing.assert_array_equal(found["brain"], np.array([1.0, 2.0], np.float32))
    np.testing.assert_array_equal(found["places"], places)


class Profiler:
    def __init__(self):
        pass


class Inspector:
    execution_context = None

    def get_engine_information(self, form):
        return '{"Layers": [1]}' if self.execution_context is not None else '{"Layers": []}'


@pytest.fixture
def child(monkeypatch, plan):
    """The child's functions with a runner and a TensorRT that stand in."""
    asked = []

    class Context:
        profiler = None

    def runner(module, request, driver):
        asked.append(request["plan"])
        context = Context()

        def replay():
            if context.profiler is not None:
                context.profiler.report_layer_time("conv", 2.0)
                context.profiler.report_layer_time("relu", 1.0)

        return SimpleNamespace(
            context=context,
            unread={},
            prepare=lambda images, sizes: replay,
            synchronize=lambda: None,
            engine=SimpleNamespace(device_memory_size=77, create_engine_inspector=Inspector),
        )

    trt = SimpleNamespace(__version__="8.5.3", IProfiler=Profiler, LayerInformationFormat=SimpleNamespace(JSON="json"))
    module = SimpleNamespace(PlanError=RuntimeError, CudaDriver=lambda: None, OUTPUTS=("boxes", "scores", "labels"))
    monkeypatch.setattr(plan_child, "import_tensorrt", lambda: trt)
    monkeypatch.setattr(plan_child, "import_runner", lambda request: module)
    monkeypatch.setattr(plan_child, "load_runner", runner)

    def ask(self, request, log):
        return plan_child.TASKS[request["task"]](dict(request))

    monkeypatch.setattr(TensorRTPython, "ask", ask)
    return asked


def test_a_plan_is_asked_for_its_layers_times_and_memory(child, plan):
    images, sizes = np.zeros((1, 2, 2, 3), np.uint8), np.ones((1, 2), np.int32)
    told = inspect_plan(plan, images, sizes, python=TensorRTPython(Path("/a/python")), runs=4)
    assert told["times_ms"] == {"conv": 2.0, "relu": 1.0}, "the mean of four"
    assert (told["activation_bytes"], told["tensorrt"], told["information"]) == (77, "8.5.3", {"Layers": [1]})
    assert child == [str(plan.resolve())]


def test_a_plan_is_read_batch_by_batch(child, plan, monkeypatch):
    def load(module, request, driver):
        def call(images, sizes):
            return [images.mean((1, 2)), sizes, sizes + 1]

        return call

    monkeypatch.setattr(plan_child, "load_runner", load)
    monkeypatch.setattr(plan_child, "read_unread", lambda runner: {"kept_1": np.full(2, 5.0)})
    batches = [(np.full((1, 2, 2, 3), i, np.uint8), np.full((1, 2), i, np.int32)) for i in range(12)]
    found = read_plan(plan, batches, python=TensorRTPython(Path("/a/python")))
    assert [set(each) for each in found] == [{"boxes", "scores", "labels", "kept_1"}] * 12
    assert found[11]["boxes"].tolist() == [[11, 11, 11]]
    assert found[1]["labels"].tolist() == [[2, 2]]
