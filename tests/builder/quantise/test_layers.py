import pytest
import torch
import torch.nn.functional as F
from torch import nn

from builder.quantise.calibration import Range, Ranges
from builder.quantise.layers import (
    LARGEST_BIAS,
    SMALLEST_SCALE,
    SMALLEST_SCALE_FLOAT32,
    Float8Linear,
    activation_rounding,
    replace_layers,
    rounding_layers,
    weight_rounding,
)

LIKE = torch.zeros(1)


UNIT = activation_rounding(Range(0.0, 255.0), "int8", LIKE, symmetric=False)


def linear(weight, bias=None):
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    layer.weight.data = torch.tensor(weight)
    if bias is not None:
        layer.bias.data = torch.tensor(bias)
    return layer


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def test_tensorrts_activations_have_zero_at_zero():
    rounding = activation_rounding(Range(-1.27, 0.5), "int8", LIKE, symmetric=True)
    assert (rounding.zero_point, rounding.kind) == (0, "int8")
    assert rounding.scale.item() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("values", "scale", "zero_point"),
    [
        pytest.param(Range(0.0, 2.55), 0.01, 0, id="after a ReLU"),
        pytest.param(Range(-0.55, 2.0), 0.01, 55, id="both signs"),
        pytest.param(Range(-2.55, 0.0), 0.01, 255, id="nothing above zero"),
        pytest.param(Range(0.0, 0.0), SMALLEST_SCALE_FLOAT32, 0, id="nothing but zero"),
    ],
)
def test_onnx_runtimes_activations_use_all_256_levels(values, scale, zero_point):
    rounding = activation_rounding(values, "int8", LIKE, symmetric=False)
    assert (rounding.zero_point, rounding.kind) == (zero_point, "uint8")
    assert rounding.scale.item() == pytest.approx(scale)


def test_weights_have_a_scale_for_each_output_channel_that_float16_can_hold():
    layer = linear([[1.27, -0.1], [0.0, 0.0], [-12.7, 3.0]]).half()
    rounding = weight_rounding(layer, "int8", UNIT)
    assert rounding.axis == 0
    assert rounding.scale.dtype == torch.float16
    assert rounding.scale.tolist() == pytest.approx([0.01, SMALLEST_SCALE, 0.1], rel=1e-3)


def test_e4m3_weights_have_one_scale():
    rounding = weight_rounding(linear([[1.0], [-4.48]]), "fp8", UNIT)
    assert rounding.scale.tolist() == pytest.approx([0.01])


def test_channels_that_a_batch_norm_has_made_small_keep_their_levels_in_float32():
    layer = linear([[1.27e-6, 3e-7], [1.0, 0.5]])
    rounding = weight_rounding(layer, "int8", UNIT)
    assert rounding.scale[0].item() == pytest.approx(1e-8)
    assert relative(rounding(layer.weight)[0], layer.weight[0]) < 0.01


def test_a_bias_fits_into_the_integers_that_onnx_runtime_keeps_it_in():
    layer = linear([[1e-12, 1e-12], [1.0, 0.5]], bias=[3.0, -3.0])
    of_input = activation_rounding(Range(0.0, 2.55), "int8", LIKE, symmetric=False)
    scale = weight_rounding(layer, "int8", of_input).scale
    assert 3.0 / (0.01 * scale[0].item()) == pytest.approx(LARGEST_BIAS)
    assert scale[1].item() == pytest.approx(1 / 127), "which its bias does not change"


@pytest.mark.parametrize(("kind", "worst"), [("int8", 0.02), ("fp8", 0.06)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_replaced_layers_answer_nearly_as_before(kind, worst, symmetric):
    model = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, 1, 2), nn.Flatten(2), nn.Linear(16, 12, bias=False))
    x = torch.randn(2, 8, 7, 9)
    before = model[0](x)
    tokens = torch.randn(2, 5, 16)
    expected = model[2](tokens)
    convolution = Ranges(Range(-3.5, 3.5), Range(float(before.min()), float(before.max())))
    ranges = {"0": convolution, "2": Ranges(Range(-3.5, 3.5), Range(-1.0, 1.0))}
    layers = {"0": model[0], "2": model[2]}
    replace_layers(model, rounding_layers(layers, ranges, kind, symmetric, outputs=True))
    assert 1e-4 < relative(model[0](x), before) < worst
    assert 1e-4 < relative(model[2](tokens), expected) < worst
    scales = {"0.of_input.scale", "0.of_weight.scale", "0.of_output.scale", "2.of_input.scale", "2.of_weight.scale"}
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight", *scales}


def test_outputs_are_rounded_only_of_convolutions_and_where_that_is_asked_for():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(2, 2))
    ranges = dict.fromkeys("01", Ranges(Range(-1, 1), Range(-1, 1)))
    layers = {"0": model[0], "1": model[1]}
    with_outputs = rounding_layers(layers, ranges, "int8", False, outputs=True)
    assert with_outputs["0"].of_output is not None
    assert with_outputs["1"].of_output is None
    assert rounding_layers(layers, ranges, "int8", True, outputs=False)["0"].of_output is None


def test_a_product_of_e4m3_numbers_is_that_of_the_rounded_ones():
    layer = nn.Linear(32, 16).half()
    x = torch.randn(2, 3, 32).half()
    quantised = Float8Linear(layer, Range(-5.0, 2.0))
    scale = 5.0 / 448
    rounded = (x.float() / scale).to(torch.float8_e4m3fn).float() * scale
    weight_scale = layer.weight.float().abs().max() / 448
    weight = (layer.weight.float() / weight_scale).to(torch.float8_e4m3fn).float() * weight_scale
    expected = F.linear(rounded, weight, layer.bias.float())
    actual = quantised(x)
    assert actual.dtype == torch.float16
    assert actual.shape == (2, 3, 16)
    torch.testing.assert_close(actual.float(), expected, atol=2e-3, rtol=2e-3)
    assert relative(actual.float(), layer(x).float()) < 0.06


def test_what_is_beyond_the_range_is_cut_not_made_nan():
    layer = nn.Linear(16, 16, bias=False).half()
    layer.weight.data.fill_(1.0)
    quantised = Float8Linear(layer, Range(-1.0, 1.0))
    assert quantised(torch.full((1, 16), 100.0).half()).tolist()[0] == pytest.approx([16.0] * 16, rel=1e-3)
