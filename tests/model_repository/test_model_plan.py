"""The Python step that serves a plan, with stand-ins of its runner and of Triton."""

import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from model_repository import TEMPLATES
from serving.contract import DETECTOR

H, W = 4, 6


class Runner:
    """Scores each image by its first pixel."""

    def __init__(self, plan, batch_sizes, plugin_library, driver):
        self.made = plan, list(batch_sizes), plugin_library, driver

    def buffers(self, batch):
        self.memory = [np.zeros((batch, H, W, 3), np.uint8), np.zeros((batch, 2), np.int32)]
        return self.memory

    def __call__(self, images, image_sizes):
        assert all(given is own for given, own in zip((images, image_sizes), self.memory, strict=True))
        assert len(images) <= 2
        batch = len(images)
        boxes = np.tile(image_sizes.astype(np.float32), 2)[:, None]
        return [boxes, images[:, 0, 0, :1].astype(np.float32), np.full((batch, 1), batch, np.int32)]


class Tensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    def as_numpy(self):
        return self.array


class Request:
    def __init__(self, *values):
        self.tensors = {
            "images": Tensor("images", np.stack([np.full((H, W, 3), value, np.uint8) for value in values])),
            "image_sizes": Tensor("image_sizes", np.array([[H, W]] * len(values), np.int32)),
        }

    def is_cancelled(self):
        return False

    def parameters(self):
        return ""


@pytest.fixture
def model(monkeypatch):
    """A `TritonPythonModel` of model_plan.py."""
    runner: Any = ModuleType("plan_runner")
    runner.PlanRunner, runner.CudaDriver = Runner, lambda device: ("driver", device)
    triton: Any = ModuleType("triton_python_backend_utils")
    triton.get_input_tensor_by_name = lambda request, name: request.tensors[name]
    triton.Tensor = Tensor
    triton.InferenceResponse = lambda output_tensors: {each.name: each.array for each in output_tensors}
    monkeypatch.setitem(sys.modules, "plan_runner", runner)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    spec: Any = importlib.util.spec_from_file_location("model_plan", TEMPLATES / DETECTOR / "1/model_plan.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TritonPythonModel()


def arguments(folder, graphs="true"):
    (folder / "1").mkdir(exist_ok=True)
    config = {"name": DETECTOR, "max_batch_size": 2, "parameters": {"cuda_graphs": {"string_value": graphs}}}
    return {
        "model_config": json.dumps(config),
        "model_repository": str(folder),
        "model_version": "1",
        "model_instance_device_id": "3",
    }


def test_the_plan_is_loaded_on_the_instances_gpu_with_what_lies_beside_it(model, tmp_path):
    model.initialize(arguments(tmp_path))
    assert model.run.made == (tmp_path / "1/model.plan", [1, 2], None, ("driver", 3))
    (tmp_path / "1/libcodetr_plugin.so").touch()
    model.initialize(arguments(tmp_path, graphs="false"))
    assert model.run.made == (
        tmp_path / "1/model.plan", [], tmp_path / "1/libcodetr_plugin.so", ("driver", 3),
    )  # fmt: skip  # one comparison


def test_requests_are_answered_together_up_to_the_largest_batch(model, tmp_path):
    model.initialize(arguments(tmp_path))
    responses = model.execute([Request(5), Request(7, 8), Request(9)])
    assert [outputs["scores"].tolist() for outputs in responses] == [[[5.0]], [[7.0], [8.0]], [[9.0]]]
    assert [outputs["boxes"].shape for outputs in responses] == [(1, 1, 4), (2, 1, 4), (1, 1, 4)]
