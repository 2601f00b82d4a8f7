"""ONNX to a plan in a child process: with a stand-in of TensorRT, and with TensorRT-RTX's own parser and builder."""

import ast
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from builder.engines import EngineError
from builder.engines.tensorrt import PLUGIN_VARIABLE, TensorRTSettings
from builder.engines.tensorrt.child import TensorRTPython
from builder.engines.tensorrt.onnx_frontend import _settings_of, build, build_plan, explain_parser_errors, node_types
from builder.engines.tensorrt.plans import run_plan
from builder.operators import interface
from builder.pipeline.export import InputSpec, export_detector
from serving.contract import PLUGIN_LIBRARY
from tests.builder.engines.tensorrt import windowed

ROOT = Path(__file__).parents[4]
RTX = ROOT / "build/tensorrt-rtx"
SPEC = InputSpec(64, 96, max_batch_size=4)

# A module tensorrt of which only that is there which a case needs.
STAND_IN = """
import numpy as np
__version__ = "8.5.3.1"
class ILogger:
    class Severity:
        ERROR, WARNING = 1, 2
    def log(self, severity, text): ...
class BuilderFlag: TF32 = "TF32"
class IBuilderConfig: ...
class NetworkDefinitionCreationFlag: EXPLICIT_BATCH = 0
def init_libnvinfer_plugins(logger, namespace): ...
class Builder:
    def __init__(self, logger):
        {start}
    def create_network(self, flags): return "network"
class Error:
    def node(self): return 1
    def desc(self): return "In node 1 (importLayer):\\n UNSUPPORTED_NODE"
class OnnxParser:
    num_errors = 1
    def __init__(self, network, logger): ...
    def parse_from_file(self, path): return False
    def get_error(self, i): return Error()
"""


def stand_in(folder, start="pass"):
    """A Python whose tensorrt is the stand-in, which does `start` when its builder is made."""
    (folder / "tensorrt.py").write_text(STAND_IN.format(start=start))
    return TensorRTPython(environment={**os.environ, "PYTHONPATH": str(folder)})


def onnx_of(path, element_type=TensorProto.FLOAT, operator="Softmax", domain=""):
    """Write a graph of three nodes: the image's type, a softmax of its pixels (or `operator`), and their largest."""
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], "cast", to=element_type),
        helper.make_node(operator, ["pixels"], ["weights"], "weigh", domain=domain),
        helper.make_node("ReduceMax", ["weights"], ["scores"], "reduce", keepdims=0),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 64, 96, 3])
    scores = helper.make_tensor_value_info("scores", element_type, None)
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    graph = helper.make_graph(nodes, "graph", [images], [scores])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_nodes_have_the_type_of_what_they_make_or_compare(tmp_path):
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], "cast", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["pixels"], ["wide"], "widen", to=TensorProto.FLOAT),
        helper.make_node("Greater", ["wide", "limit"], ["is_light"], "compare"),
        helper.make_node("Shape", ["wide"], ["sizes"], "shape"),
        helper.make_node("TopK", ["pixels", "k"], ["scores", "labels"], "top"),
        helper.make_node("Ours", ["scores"], ["boxes"], "plugin", domain="trt.plugins"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 64])
    made = [helper.make_tensor_value_info("is_light", TensorProto.BOOL, None)]
    constants = [
        helper.make_tensor("limit", TensorProto.FLOAT, [], [0.5]),
        helper.make_tensor("k", TensorProto.INT64, [1], [3]),
    ]
    graph = helper.make_graph(nodes, "graph", [images], made, constants)
    opsets = [helper.make_opsetid("", 16), helper.make_opsetid("trt.plugins", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "a.onnx")
    assert node_types(tmp_path / "a.onnx") == {
        "cast": "float16", "widen": "float32", "compare": "float32", "top": "float16", "plugin": "float16"
    }  # fmt: skip


def refused(tmp_path, python, precision="float32", **options):
    with pytest.raises(EngineError) as error:
        build_plan(onnx_of(tmp_path / "a.onnx"), tmp_path / "a.plan", SPEC, precision, python=python, **options)
    assert str(error.value).endswith(f"; log: {tmp_path / 'a.plan.log'}")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_python_without_tensorrt_is_told(tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.8: no such file')")
    python = TensorRTPython(environment={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert f"{sys.executable} cannot import tensorrt: libnvinfer.so.8: no such file" in refused(tmp_path, python)


def test_a_python_that_is_not_there_is_told(tmp_path):
    with pytest.raises(EngineError, match="cannot run /nowhere/python: No such file or directory; name a Python"):
        build_plan(
            tmp_path / "a.onnx", tmp_path / "a.plan", SPEC, "float32", python=TensorRTPython(Path("/nowhere/python"))
        )


def test_a_node_that_the_parser_refuses_is_named_from_the_file(tmp_path):
    error = refused(tmp_path, stand_in(tmp_path))
    assert (
        "TensorRT 8.5.3.1 cannot parse a.onnx: node weigh (Softmax): In node 1 (importLayer): UNSUPPORTED_NODE" in error
    )


def test_an_abort_is_an_error_of_this_process(tmp_path):
    python = stand_in(tmp_path, "import os; print('tactic.cpp: DCHECK failed', flush=True); os.abort()")
    assert "TensorRT ended its process with SIGABRT, having said: tactic.cpp: DCHECK failed" in refused(
        tmp_path, python
    )


def test_warnings_are_not_what_an_ended_process_said(tmp_path):
    says = "import os; print('ERROR: shapes', 'WARNING: INT64 weights', sep=chr(10), flush=True); os.abort()"
    error = refused(tmp_path, stand_in(tmp_path, says))
    assert "ended its process with SIGABRT, having said: ERROR: shapes; log" in error
    error = refused(tmp_path, stand_in(tmp_path, says.replace("ERROR", "WARNING")))
    assert "ended its process with SIGABRT, having said: nothing but warnings; log" in error


def test_a_null_pointer_of_the_bindings_is_explained(tmp_path):
    start = "logger.log(2, 'CUDA initialization failure with error: 35'); raise TypeError('pybind11::init()')"
    error = refused(tmp_path, stand_in(tmp_path, start))
    assert "TensorRT 8.5.3.1 did not start: CUDA initialization failure with error: 35" in error
    assert "CUDA initialization failure" in (tmp_path / "a.plan.log").read_text()


def test_what_went_wrong_otherwise_is_one_line_and_a_traceback_in_the_log(tmp_path):
    error = refused(tmp_path, stand_in(tmp_path, r"raise RuntimeError('first\nsecond')"))
    assert "RuntimeError: first second" in error
    assert "Traceback" in (tmp_path / "a.plan.log").read_text()


def test_a_plugin_that_cannot_be_loaded_is_told(tmp_path):
    (tmp_path / "plugin.so").write_bytes(b"not a library")
    assert "cannot load the plugin: " in refused(tmp_path, stand_in(tmp_path), plugin=tmp_path / "plugin.so")


def test_settings_reach_the_child(tmp_path):
    error = refused(tmp_path, stand_in(tmp_path), settings=TensorRTSettings(optimization_level=0))
    assert error.startswith("TensorRT 8.5.3.1 has no optimization_level")


@pytest.mark.parametrize(
    ("spec", "batch"),
    [
        pytest.param(InputSpec(64, 96, 4), [1, 4, 4], id="any up to the largest"),
        pytest.param(InputSpec(64, 96, 4, dynamic_batch=False), [4, 4, 4], id="one only"),
    ],
)
def test_the_profile_is_the_specs(monkeypatch, tmp_path, spec, batch):
    asked = []
    monkeypatch.setattr(
        TensorRTPython, "ask", lambda self, request, log: asked.append(request) or {"tensorrt": "", "layers": {}}
    )
    build_plan(tmp_path / "a.onnx", tmp_path / "a.plan", spec, "float32")
    assert asked[0]["batch"] == batch


def test_parser_errors_of_nodes_come_before_others(tmp_path):
    error = {"node": "", "operator": ""}
    errors = [
        {**error, "index": -1, "text": "bad"},
        {**error, "index": 5, "node": "n", "operator": "Op", "text": "worse"},
    ]
    assert explain_parser_errors(errors, tmp_path) == "node n (Op): worse (and 1 more)"
    assert explain_parser_errors(errors[:1], tmp_path) == "bad"
    assert explain_parser_errors([], tmp_path) == "the parser gives no reason"


def test_the_child_knows_every_setting():
    """A setting that is added to the class has to be read or refused by the child."""
    source = (ROOT / "builder/engines/tensorrt/plan_child.py").read_text(encoding="utf-8")
    missing = [name for name in _settings_of(TensorRTSettings()) if f'"{name}"' not in source]
    assert not missing


def test_a_plugin_library_of_before_a_plugin_is_told(tmp_path):
    text = 'Assertion failed: creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
    error = {"index": 3, "node": "attend", "operator": interface.WINDOW_PLUGIN_NAME, "text": text}
    assert explain_parser_errors([error], tmp_path).endswith(
        'correct?"; the plugin library is of another version: run make plugin again'
    )
    assert explain_parser_errors([{**error, "operator": "NobodysPlugin"}], tmp_path).endswith('correct?"')


@pytest.mark.parametrize(("window_attention", "nodes"), [("plugin", 2), ("written-out", 0)])
def test_window_attention_is_plugin_nodes_or_written_out(monkeypatch, tmp_path, window_attention, nodes):
    asked = []

    def ask(self, request, log):
        if request["task"] == "version":
            return {"tensorrt": "11.1"}
        found = [node for node in onnx.load(request["onnx"]).graph.node if node.op_type == interface.WINDOW_PLUGIN_NAME]
        asked.append((len(found), request["plugin"]))
        layer = {"Inputs": [{"Datatype": "FP16"}], "Outputs": [{"Datatype": "FP16"}]}
        layers = [{"Name": "gemm", **layer}, *[{"Name": node.name, "LayerType": "PluginV3", **layer} for node in found]]
        return {"tensorrt": "11.1", "layers": {"Layers": layers}}

    program, library = windowed.exported(), tmp_path / "built" / PLUGIN_LIBRARY
    library.parent.mkdir()
    library.touch()
    monkeypatch.setenv(PLUGIN_VARIABLE, str(library))
    monkeypatch.setattr(TensorRTPython, "ask", ask)
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    built = build(program, tmp_path / "a.plan", TensorRTSettings(window_attention=window_attention))
    wanted = library if nodes else None
    assert asked == [(nodes, wanted and str(wanted))]
    assert built.extra_files == ((library,) if nodes else ()), "the plugin is wanted by its nodes alone"
    assert (tmp_path / PLUGIN_LIBRARY).is_file() == (nodes > 0)
    assert built.plugin_layers == nodes


@pytest.fixture
def rtx():
    if not (RTX / "tensorrt_rtx_bindings").is_dir():
        pytest.skip("no TensorRT-RTX in build/tensorrt-rtx; make build/tensorrt-rtx/.installed fetches it")
    path = os.pathsep.join((str(Path(__file__).with_name("rtx_as_tensorrt")), str(RTX)))
    return TensorRTPython(environment={**os.environ, "PYTHONPATH": path})


@pytest.mark.parametrize(
    ("precision", "element_type"), [("float32", TensorProto.FLOAT), ("float16", TensorProto.FLOAT16)]
)
def test_a_plan_is_built(tmp_path, rtx, precision, element_type):
    path, plan, cache = onnx_of(tmp_path / "a.onnx", element_type), tmp_path / "a.plan", tmp_path / "cache"
    settings = TensorRTSettings(timing_cache=cache, workspace_gib=1.0, optimization_level=2, average_timings=2)
    if precision == "float16":  # the last node keeps a float32 tensor, as a detector does
        model = onnx.load(path)
        model.graph.node.append(helper.make_node("Cast", ["scores"], ["wide"], "widen", to=TensorProto.FLOAT))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("wide", TensorProto.FLOAT, None))
        onnx.save(model, path)
    report = build_plan(path, plan, SPEC, precision, settings, python=rtx, inspect=False, verbose=True)
    assert report.layers is None
    assert plan.stat().st_size > 1000
    assert cache.is_file()
    assert "images" in report.log.read_text()


def test_a_strongly_typed_network_does_not_make_float16_of_float32(tmp_path, rtx):
    assert "the ONNX file has no float16 tensor" in refused(tmp_path, rtx, "float16", inspect=False)


def test_a_real_parser_names_the_node(tmp_path, rtx):
    path = onnx_of(tmp_path / "b.onnx", operator="Unheard", domain="of.nobody")
    with pytest.raises(EngineError, match=r"cannot parse b\.onnx: node weigh \(Unheard\): .*; log: .*b\.plan\.log$"):
        build_plan(path, tmp_path / "b.plan", SPEC, "float32", python=rtx)


class Pixels(torch.nn.Module):
    """A product of pixels, in the type of its weight."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)

    def forward(self, images, image_sizes):
        boxes = self.linear(images.to(self.linear.weight.dtype)).float().flatten(1, 2)
        return boxes * image_sizes[:, None, :1], boxes[..., 0], boxes[..., 1].int()


@pytest.mark.parametrize(
    ("spec", "batch"),
    [
        (InputSpec(64, 96, 2), [1, 2, 2]),
        (InputSpec(64, 96, 2, dynamic_batch=False), [2, 2, 2]),
        (InputSpec(64, 96), [1, 1, 1]),
    ],
)
def test_a_program_becomes_a_plan_of_its_precision_and_batch(monkeypatch, tmp_path, spec, batch):
    asked = []

    def ask(self, request, log):
        if request["task"] == "version":
            return {"tensorrt": "11.1"}
        graph = onnx.load(request["onnx"]).graph
        asked.append({**request, "inputs": {each.name for each in graph.input}, "outputs": graph.output})
        linear = {"Name": "gemm", "Inputs": [{"Datatype": type_}], "Outputs": [{"Datatype": type_}]}
        return {"tensorrt": "11.1", "layers": {"Layers": [linear]}}

    program, type_ = export_detector(Pixels().half(), spec), "FP16"  # PyTorch looks for a real tensorrt in here
    monkeypatch.setattr(TensorRTPython, "ask", ask)
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    built = build(program, tmp_path / "a.plan")
    assert (built.file, built.kind.name, built.inputs, built.outputs, built.extra_files) == (
        tmp_path / "a.plan", "tensorrt", ("images", "image_sizes"), ("boxes", "scores", "labels"), (),
    )  # fmt: skip  # one comparison
    assert (asked[0]["precision"], asked[0]["batch"], asked[0]["plugin"]) == ("float16", batch, None)
    assert asked[0]["inputs"] == {"images", "image_sizes"}
    build(program, tmp_path / "a.plan", TensorRTSettings(marked_modules=("linear",)))
    assert len(asked[1]["outputs"]) == 4
    type_ = "Float"
    with pytest.raises(EngineError, match="the plan was not built in float16"):
        build(program, tmp_path / "a.plan")


RUNNING_STAND_IN = """
import sys
sys.modules["plan_runner"] = sys.modules[__name__]
__version__ = "8.5.3.1"
OUTPUTS = ("boxes", "scores", "labels")
class PlanError(Exception): ...
class CudaDriver: ...
class PlanRunner:
    def __init__(self, plan, batch_sizes, plugin_library, driver):
        if plan.read_bytes() != b"plan" or plugin_library is not None or batch_sizes != [1]:
            raise PlanError("another plan")
    def __call__(self, images, image_sizes):
        return images[:, 0, :1] * 2.0, images[:, 0, 0, 0] + 0.5, image_sizes
"""


def test_arrays_go_in_and_come_out(tmp_path):
    (tmp_path / "tensorrt.py").write_text(RUNNING_STAND_IN)
    python = TensorRTPython(environment={**os.environ, "PYTHONPATH": str(tmp_path)})
    (tmp_path / "a.plan").write_bytes(b"plan")
    batches = [(np.full((n, 2, 2, 3), n, np.uint8), np.full((n, 2), n, np.int32)) for n in (1, 2)]
    outputs = run_plan(tmp_path / "a.plan", batches, python=python, graphs=[1])
    assert [(each.boxes.shape, each.scores.tolist(), each.labels.tolist()) for each in outputs] == [
        ((1, 1, 3), [1.5], [[1, 1]]),
        ((2, 1, 3), [2.5, 2.5], [[2, 2], [2, 2]]),
    ]
    (tmp_path / "a.plan").write_bytes(b"other")
    with pytest.raises(EngineError, match=r"another plan; log: .*a\.plan\.run\.log$"):
        run_plan(tmp_path / "a.plan", batches, python=python, graphs=[1])


@pytest.mark.parametrize("path", ["builder/engines/tensorrt/plan_child.py", "model_repository/plan_runner.py"])
def test_what_runs_in_the_child_imports_numpy_alone(path):
    nodes = list(ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} - sys.stdlib_module_names == {"numpy"}
