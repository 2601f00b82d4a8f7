"""Export with any batch, and ONNX Runtime's answers."""

import onnx
import pytest
import torch

from builder import load_detector
from builder.engines import onnx as engine
from builder.pipeline.export import InputSpec, export_detector, uses_operator
from tests import shallow

SPEC = InputSpec(90, 122, 3)  # odd sides within the backbone


@pytest.fixture(scope="module", params=["default", pytest.param("discrete", marks=pytest.mark.slow)])
def sampling(request):
    return request.param


@pytest.fixture(scope="module")
def deployed(sampling):
    return load_detector(*shallow.rtdetrv2(sampling)).deploy()


@pytest.fixture(scope="module")
def program(deployed):
    return export_detector(deployed, SPEC)


def images(batch):
    generator = torch.manual_seed(batch)
    sizes = torch.tensor([[SPEC.height, SPEC.width]] * batch, dtype=torch.int32)
    return torch.randint(0, 256, (batch, SPEC.height, SPEC.width, 3), dtype=torch.uint8, generator=generator), sizes


def test_only_bilinear_sampling_uses_the_operator(program, deployed, sampling):
    assert uses_operator(program) == deployed.variant.uses_operator == (sampling == "default")


def test_onnx_gives_the_same_at_any_batch(program, deployed, tmp_path):
    built = engine.build(program, tmp_path / "model.onnx")
    run = engine.load(tmp_path / "model.onnx", SPEC, "cpu")
    for batch in (1, 2, 3):
        inputs = images(batch)
        boxes, scores, labels = deployed(*inputs)
        out = run(*(tensor.numpy() for tensor in inputs))
        torch.testing.assert_close(torch.from_numpy(out.boxes), boxes, atol=5e-5, rtol=0)
        torch.testing.assert_close(torch.from_numpy(out.scores), scores, atol=5e-5, rtol=0)
        assert (out.labels == labels.numpy()).all()
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = {node.op_type for node in graph.node}
    assert "BatchNormalization" not in kinds
    assert [value.name for value in graph.input] == list(built.inputs) == ["images"]
    assert ("GridSample" in kinds) == deployed.variant.uses_operator
    convolutions = sum(node.op_type == "Conv" for node in graph.node)
    assert convolutions == sum(isinstance(module, torch.nn.Conv2d) for module in deployed.modules())
