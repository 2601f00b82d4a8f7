"""What a plan that is built becomes, and where it runs, with stand-ins of the runner."""

from pathlib import Path

import numpy as np
import pytest
import torch

from builder.engines import EngineError
from builder.engines.tensorrt import TensorRTSettings, load, plans, route
from builder.engines.tensorrt.child import TensorRTPython
from builder.pipeline.export import InputSpec
from model_repository.plan_runner import PlanError

NAMES = ("output0", "output1", "output2")
PLUGIN = Path("libcodetr_plugin.so")


@pytest.mark.parametrize(
    ("version", "backend", "python"),
    [
        pytest.param("8.5.3.1", None, True, id="TensorRT 8 by itself"),
        pytest.param("11.4", None, False, id="a later one by itself"),
        pytest.param("11.4", "python", True, id="asked for"),
        pytest.param("8.5.3.1", "tensorrt", False, id="a server of that release"),
    ],
)
def test_who_serves_a_plan(version, backend, python):
    built = plans.built(
        Path("a.plan"), TensorRTSettings(backend=backend), "onnx", version, ("images",), NAMES, (PLUGIN,)
    )
    assert (built.kind.name, built.kind.file_name, built.device) == ("tensorrt", "model.plan", "cuda")
    assert (built.versions, built.frontend, built.inputs) == ({"tensorrt": version}, "onnx", ("images",))
    if python:
        assert (built.kind.config, built.kind.code) == ("configs/plan.pbtxt", "1/model_plan.py")
        assert built.outputs == ("boxes", "scores", "labels"), "the runner gives them these names"
        assert built.extra_files == (plans.RUNNER, PLUGIN)
    else:
        assert (built.kind.config, built.kind.code) == ("config.pbtxt", None)
        assert (built.outputs, built.extra_files) == (NAMES, (PLUGIN,))


class Runner:
    """Keeps what it was made with; fails where its plan says so."""

    def __init__(self, plan, batch_sizes, plugin):
        self.made, self.stream = (plan, batch_sizes, plugin), 7
        if plan.name == "bad.plan":
            raise PlanError("cannot load")

    def __call__(self, images, image_sizes):
        if len(images) > 2:
            raise PlanError("too many")
        return [images, image_sizes, image_sizes]

    def prepare(self, images, image_sizes):
        return lambda: self.stream


@pytest.fixture
def runner(monkeypatch):
    monkeypatch.setattr(plans, "PlanRunner", Runner)
    monkeypatch.delenv(route.PYTHON_VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("spec", "graphs"), [(InputSpec(64, 96, 4), [1, 4]), (InputSpec(64, 96, 4, dynamic_batch=False), [4])]
)
def test_a_plan_runs_here_with_the_plugin_beside_it(tmp_path, runner, spec, graphs):
    engine = load(tmp_path / "a.plan", spec, "cuda", TensorRTSettings(frontend="torch-tensorrt"))
    assert engine.runner.made == (tmp_path / "a.plan", graphs, None)
    (tmp_path / PLUGIN).touch()
    engine = load(tmp_path / "a.plan", spec, "cuda", TensorRTSettings(frontend="onnx"))
    assert engine.runner.made == (tmp_path / "a.plan", graphs, tmp_path / PLUGIN)
    images, sizes = np.zeros((2, 4)), np.ones((2, 2))
    output = engine(images, sizes)
    assert output.boxes is images
    assert output.labels is sizes


def test_what_a_runner_refuses_is_an_engines_error(tmp_path, runner):
    settings = TensorRTSettings(frontend="onnx")
    with pytest.raises(EngineError, match=r"^cannot load$"):
        load(tmp_path / "bad.plan", InputSpec(64, 96), "cuda", settings)
    with pytest.raises(EngineError, match=r"^too many$"):
        load(tmp_path / "a.plan", InputSpec(64, 96), "cuda", settings)(np.zeros((3, 1)), np.zeros((3, 2)))


@pytest.mark.parametrize(("on_gpu", "stream"), [(True, 42), (False, 7)], ids=["PyTorch's stream", "its own"])
def test_a_prepared_call_queues_where_the_clock_looks(tmp_path, runner, monkeypatch, on_gpu, stream):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: type("Stream", (), {"cuda_stream": 42}))
    engine = load(tmp_path / "a.plan", InputSpec(64, 96), "cuda", TensorRTSettings(frontend="onnx"))
    assert engine.prepare(np.zeros((1, 1)), np.zeros((1, 2)))() == stream


def test_a_plan_of_another_python_runs_there(tmp_path, monkeypatch):
    asked = []

    def ask(self, request, log):
        asked.append((self.executable, request["task"], request["plan"], request["plugin"], request["batches"]))
        boxes, scores, labels = np.zeros((1, 3, 4)), np.full((1, 3), 0.5), np.ones((1, 3))
        np.savez(request["outputs"], boxes_0=boxes, scores_0=scores, labels_0=labels)
        return {"tensorrt": "8.5.3.1"}

    monkeypatch.setattr(TensorRTPython, "ask", ask)
    monkeypatch.setenv(route.PYTHON_VARIABLE, "/a/python")
    (tmp_path / PLUGIN).touch()
    engine = load(tmp_path / "a.plan", InputSpec(64, 96), "cuda", TensorRTSettings(frontend="onnx"))
    images, sizes = np.zeros((1, 64, 96, 3), np.uint8), np.array([[64, 96]], np.int32)
    assert engine(images, sizes).scores.tolist() == [[0.5, 0.5, 0.5]]
    assert asked == [(Path("/a/python"), "run", str(tmp_path / "a.plan"), str(tmp_path / PLUGIN), 1)]
    with pytest.raises(EngineError, match=r"runs in /a/python only, where a call cannot be recorded"):
        engine.prepare(images, sizes)


def test_a_plan_of_another_python_is_measured_there(tmp_path, monkeypatch):
    def ask(self, request, log):
        with np.load(request["inputs"]) as arrays:
            assert arrays["images_0"].shape == (2, 64, 96, 3)
        assert (request["task"], request["graphs"], request["seconds"], request["least"]) == ("measure", [2], 0.5, 40)
        return {"tensorrt": "8.5.3.1", "times_ms": [2.0, 1.0], "calls_per_s": 900.0, "memory": 2**20}

    monkeypatch.setattr(TensorRTPython, "ask", ask)
    engine = plans.ChildPlan(tmp_path / "a.plan", None, TensorRTPython(Path("/a/python")))
    images, sizes = np.zeros((2, 64, 96, 3), np.uint8), np.array([[64, 96]] * 2, np.int32)
    assert engine.measure(images, sizes, 0.5, 40) == plans.Timings([2.0, 1.0], 900.0, 2**20)
