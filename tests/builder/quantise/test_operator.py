import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from builder.engines.onnx import write
from builder.pipeline.export import InputSpec, export_detector
from builder.quantise.layers import Rounding
from builder.quantise.operator import PER_TENSOR, fake_quantise, quantised_to
from tests.toy_family import SMALL, ToyDetector


def test_int8_is_rounded_to_whole_units_and_cut_at_both_ends():
    x = torch.tensor([-20.0, -1.26, -0.24, 0.0, 0.26, 100.0])
    rounded = fake_quantise(x, torch.tensor([0.1]), 0, PER_TENSOR, "int8")
    torch.testing.assert_close(rounded, torch.tensor([-12.8, -1.3, -0.2, 0.0, 0.3, 12.7]))


def test_uint8_has_its_zero_where_it_is_told():
    x = torch.tensor([-1.0, -0.5, 0.0, 30.0])
    rounded = fake_quantise(x, torch.tensor([0.1]), 5, PER_TENSOR, "uint8")
    torch.testing.assert_close(rounded, torch.tensor([-0.5, -0.5, 0.0, 25.0]))


def test_e4m3_keeps_three_bits_of_mantissa_and_is_cut_at_its_largest():
    x = torch.tensor([0.0, 1.0, 1.06, 17.0, 19.0, 500.0, -1e9])
    rounded = fake_quantise(x, torch.tensor([1.0]), 0, PER_TENSOR, "fp8")
    assert rounded.tolist() == [0.0, 1.0, 1.0, 16.0, 20.0, 448.0, -448.0]


@pytest.mark.parametrize("axis", [0, 1])
def test_every_entry_of_an_axis_has_a_scale_of_its_own(axis):
    x = torch.full((2, 2), 1.0)
    rounded = fake_quantise(x, torch.tensor([0.4, 0.3]), 0, axis, "int8")
    wanted = torch.tensor([[0.8, 0.8], [0.9, 0.9]])
    torch.testing.assert_close(rounded, wanted if axis == 0 else wanted.T)


def test_half_precision_stays_half_precision():
    x = torch.tensor([0.26], dtype=torch.float16)
    rounded = fake_quantise(x, torch.tensor([0.125], dtype=torch.float16), 0, PER_TENSOR, "int8")
    assert rounded.dtype == torch.float16
    assert rounded.item() == 0.25


class Rounded(nn.Module):
    def __init__(self, rounding):
        super().__init__()
        self.rounding = rounding
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images, image_sizes):
        x = self.rounding(images.float() + self.weight)
        return x, x[:, 0] + image_sizes.sum(), image_sizes


@pytest.mark.parametrize(
    ("zero_point", "axis", "kind"),
    [
        pytest.param(0, PER_TENSOR, "int8", id="TensorRT's activations"),
        pytest.param(0, 3, "int8", id="one scale for each channel"),
        pytest.param(40, PER_TENSOR, "uint8", id="ONNX Runtime's activations"),
    ],
)
def test_onnx_runtime_rounds_as_pytorch_does(tmp_path, zero_point, axis, kind):
    module = Rounded(Rounding(torch.full((1 if axis == PER_TENSOR else 3,), 0.7), zero_point, axis, kind))
    path = tmp_path / "model.onnx"
    program = export_detector(module, InputSpec(32, 32))
    write(program, path)
    assert quantised_to(program) == "int8"
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 1
    images = np.arange(32 * 32 * 3, dtype=np.int64).reshape(1, 32, 32, 3).astype(np.uint8)
    sizes = np.array([[32, 32]], np.int32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (actual,) = session.run(["boxes"], {"images": images, "image_sizes": sizes})
    np.testing.assert_array_equal(actual, module(torch.from_numpy(images), torch.from_numpy(sizes))[0].detach())


def test_a_program_tells_what_it_is_quantised_to():
    assert quantised_to(export_detector(ToyDetector(SMALL), InputSpec(64, 96))) is None
    rounded = Rounded(Rounding(torch.ones(1), 0, PER_TENSOR, "fp8"))
    assert quantised_to(export_detector(rounded, InputSpec(32, 32))) == "fp8"
