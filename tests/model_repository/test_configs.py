"""Every tracked `config.pbtxt` against the contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from model_repository import TEMPLATES
from serving.contract import DETECTOR, ENSEMBLE, POSTPROCESS, PREPROCESS, contract
from serving.postprocess import PostprocessSettings
from serving.preprocess import PreprocessSettings
from serving.triton import OnnxSettings, PlanSettings, parse_settings

CONFIGS = sorted(TEMPLATES.rglob("*.pbtxt"))
TYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "INT32": "TYPE_INT32", "FP32": "TYPE_FP32"}
STEPS = [path for path in CONFIGS if path.parent.name != ENSEMBLE]


def read(path: Path) -> Any:
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def as_json(path: Path) -> Any:
    """The config as `initialize` receives it."""
    return json_format.MessageToDict(read(path), preserving_proto_field_name=True)


def name_of(path: Path) -> str:
    return path.relative_to(TEMPLATES).as_posix()


def tensors(entries: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    kinds = model_config_pb2.DataType
    return [(entry.name, kinds.Name(entry.data_type), tuple(entry.dims)) for entry in entries]


def test_every_model_has_a_config() -> None:
    assert {path.relative_to(TEMPLATES).parts[0] for path in CONFIGS} == set(contract(1, 1))


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_tensors_are_the_contracts(path: Path) -> None:
    config = read(path)
    model = contract(768, 1152)[path.relative_to(TEMPLATES).parts[0]]
    assert config.name == model.name
    assert tensors(config.input) == [(tensor.name, TYPES[tensor.dtype], tensor.dims) for tensor in model.inputs]
    assert tensors(config.output) == [(tensor.name, TYPES[tensor.dtype], tensor.dims) for tensor in model.outputs]
    assert config.max_batch_size >= 1


def test_the_ensemble_wires_every_tensor_of_every_step() -> None:
    config = read(TEMPLATES / ENSEMBLE / "config.pbtxt")
    models = contract(1, 1)
    available = {tensor.name for tensor in models[ENSEMBLE].inputs}
    assert [step.model_name for step in config.ensemble_scheduling.step] == [PREPROCESS, DETECTOR, POSTPROCESS]
    for step in config.ensemble_scheduling.step:
        model = models[step.model_name]
        assert set(step.input_map) == {tensor.name for tensor in model.inputs}
        assert set(step.output_map) == {tensor.name for tensor in model.outputs}
        assert set(step.input_map.values()) <= available
        available |= set(step.output_map.values())
    assert {tensor.name for tensor in models[ENSEMBLE].outputs} <= available


@pytest.mark.parametrize("path", STEPS, ids=name_of)
def test_steps_batch_and_refuse_what_waits_too_long(path: Path) -> None:
    """But for a step of a single instance: there a queue policy stalls requests (the config says what was seen)."""
    config = read(path)
    assert config.HasField("dynamic_batching")
    policy = config.dynamic_batching.default_queue_policy
    if sum(group.count for group in config.instance_group) == 1:
        assert path.parent.name == "configs"
        assert not config.dynamic_batching.HasField("default_queue_policy")
        return
    assert policy.max_queue_size > 0
    assert policy.default_timeout_microseconds >= 1_000_000
    assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT
    assert config.instance_group


@pytest.mark.parametrize("path", [path for path in STEPS if DETECTOR in path.parts], ids=name_of)
def test_the_detector_is_warmed_up_with_its_own_inputs(path: Path) -> None:
    config = read(path)
    expected = {tensor.name: (TYPES[tensor.dtype], tensor.dims) for tensor in contract(768, 1152)[DETECTOR].inputs}
    assert config.model_warmup
    for warmup in config.model_warmup:
        kinds = model_config_pb2.DataType
        inputs = {name: (kinds.Name(entry.data_type), tuple(entry.dims)) for name, entry in warmup.inputs.items()}
        assert inputs == expected


def test_the_plan_runs_with_cuda_graphs() -> None:
    config = read(TEMPLATES / DETECTOR / "config.pbtxt")
    assert config.platform == "tensorrt_plan"
    assert config.optimization.cuda.graphs


def test_a_plan_in_python_has_one_instance_on_each_gpu() -> None:
    config = read(TEMPLATES / DETECTOR / "configs/plan.pbtxt")
    assert (config.backend, config.platform) == ("python", "")
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_GPU, 1)


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        pytest.param(f"{PREPROCESS}/config.pbtxt", PreprocessSettings(), id="preprocess"),
        pytest.param(f"{POSTPROCESS}/config.pbtxt", PostprocessSettings(), id="postprocess"),
        pytest.param(f"{DETECTOR}/configs/onnx.pbtxt", OnnxSettings(), id="onnx"),
        pytest.param(f"{DETECTOR}/configs/plan.pbtxt", PlanSettings(), id="plan"),
    ],
)
def test_parameters_are_all_the_settings_at_their_defaults(path: str, settings: Any) -> None:
    config = as_json(TEMPLATES / path)
    assert parse_settings(type(settings), config) == settings
    assert set(config["parameters"]) == set(vars(settings))
