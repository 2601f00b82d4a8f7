import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from builder.operators.cuda import load_cuda_operator
from builder.operators.linear_e4m3 import ACTIVATIONS, E4M3, E4M3_MAX, linear_e4m3, reference_linear_e4m3, to_e4m3
from builder.pipeline.export import decompose_operator, uses_operator

OPERATOR = torch.ops.codetr.linear_e4m3.default
HALVES = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
EXACT = {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu}
GELU_BY_TANH = 4.8e-4  # how far it is from GELU


def random_inputs(rows=7, columns=32, out=48, half=torch.float16, device="cpu", largest=120.0):
    """Return the operator's tensors; the results, in the units that they are rounded in, go up to about `largest`."""
    x = torch.randn(rows, columns, device=device) * 20
    weight = torch.randn(out, columns, device=device) * 20
    scale = torch.tensor(0.05, device=device)
    factor = torch.tensor(largest / 5 / columns**0.5, device=device)
    bias = torch.randn(out, device=device).to(half)
    return x.to(E4M3), weight.to(E4M3), bias, scale, scale.clone(), factor


def exact(inputs, activation):
    """Return what `linear_e4m3` rounds, in float64."""
    x, weight, bias, x_scale, weight_scale, factor = (tensor.double() for tensor in inputs)
    return EXACT[activation](x_scale * weight_scale * (x @ weight.t()) + bias) * factor


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@HALVES
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_results_are_the_nearest_numbers_of_e4m3(half, activation):
    inputs = random_inputs(half=half)
    numbers = torch.arange(256, dtype=torch.uint8).view(E4M3).double()
    numbers = numbers[numbers.isfinite()]
    wanted = exact(inputs, activation)
    least = (wanted[..., None] - numbers).abs().amin(-1)
    off = GELU_BY_TANH * inputs[-1] if activation == "gelu" else 1e-5 * wanted.abs()
    distance = (linear_e4m3(*inputs, activation).double() - wanted).abs()
    assert (distance <= least + 2 * off).all()
    assert distance.max() > 1, "large numbers have large steps"


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_too_large_becomes_the_largest_number(activation):
    inputs = random_inputs(largest=1e6)
    wanted = exact(inputs, activation)
    out = linear_e4m3(*inputs, activation).float()
    assert (out[wanted > E4M3_MAX] == E4M3_MAX).all()
    assert (out[wanted < -E4M3_MAX] == -E4M3_MAX).all()
    assert (wanted > E4M3_MAX).sum() > 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({0: torch.zeros(3, 32)}, "x must be a float8_e4m3fn matrix", id="type of x"),
        pytest.param({1: torch.zeros(48 * 32).to(E4M3)}, "weight must be a float8_e4m3fn matrix", id="axes"),
        pytest.param({1: torch.zeros(48, 16).to(E4M3)}, "weight must have as many columns as x", id="columns"),
        pytest.param({1: torch.zeros(40, 32).to(E4M3)}, "must be positive multiples of 16", id="channels out"),
        pytest.param({2: torch.zeros(48)}, "bias must be float16 or bfloat16", id="type of the bias"),
        pytest.param({2: torch.zeros(47).half()}, "bias must have one number for each row of weight", id="bias"),
        pytest.param({6: 3}, r"activation must be 0 \(none\), 1 \(ReLU\) or 2 \(GELU\)", id="activation"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_misfits_are_refused(device, changes, message):
    arguments = dict(enumerate((*random_inputs(), 1))) | changes
    moved = [each.to(device) if isinstance(each, torch.Tensor) else each for each in arguments.values()]
    with pytest.raises(RuntimeError, match=f"^linear_e4m3: .*{message}"):
        OPERATOR(*moved)


class Layer(nn.Module):
    def __init__(self, activation):
        super().__init__()
        self.activation = activation

    def forward(self, x, *others):
        return linear_e4m3(to_e4m3(x), *others, self.activation).float() + 1


def test_a_program_with_it_alone_wants_the_library_and_can_do_without():
    x, *others = random_inputs()
    program = torch.export.export(Layer("relu"), (x.float(), *others), strict=True)
    assert uses_operator(program)
    written_out = decompose_operator(program)
    assert not uses_operator(written_out)
    expected = Layer("relu")(x.float(), *others)
    for each in (program, written_out):
        assert torch.equal(each.module()(x.float(), *others), expected)


# ---- On a GPU ----

# Encoder FFN of Co-DINO, MLPs of Swin-L's third and second stage, all at 768x1152; and few rows.
SHAPES = [(73656, 256, 2048), (3456, 768, 3072), (13824, 384, 1536), (100, 256, 2048)]


@pytest.fixture(scope="module")
def cuda():
    load_cuda_operator()
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU that multiplies E4M3 numbers")
    return torch.device("cuda")


def unfused(inputs, activation):
    """Return what layers do that are not joined: a product in half precision, then activation and rounding."""
    x, weight, bias, x_scale, weight_scale, factor = inputs
    y = torch._scaled_mm(
        x, weight.t(), scale_a=x_scale, scale_b=weight_scale, bias=bias, out_dtype=bias.dtype, use_fast_accum=True
    )
    return to_e4m3(EXACT[activation](y).float() * factor)


def errors(out, wanted):
    """Return the relative errors of the worst row and of the worst column."""
    wanted = wanted.clamp(-E4M3_MAX, E4M3_MAX)
    off = out.double() - wanted
    return [float((off.norm(dim=axis) / wanted.norm(dim=axis)).max()) for axis in (0, 1)]


@pytest.mark.gpu
@HALVES
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("largest", [120.0, 5000.0], ids=["in range", "too large"])
@pytest.mark.parametrize("shape", SHAPES, ids=["x".join(map(str, shape)) for shape in SHAPES])
def test_loses_no_more_than_unjoined_layers(cuda, half, activation, largest, shape):
    rows, columns, out = shape
    inputs = random_inputs(rows, columns, out, half=half, device=cuda, largest=largest)
    wanted = exact(inputs, activation)
    assert bool((wanted > 2 * E4M3_MAX).any()) is (largest > E4M3_MAX)
    for found, usual in zip(
        errors(linear_e4m3(*inputs, activation), wanted), errors(unfused(inputs, activation), wanted), strict=True
    ):
        assert found <= 1.05 * usual


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_agrees_with_the_reference(cuda, activation):
    """But where sums of another order or length of mantissa round to the next number."""
    inputs = random_inputs(1000, 256, 512, device=cuda)
    reference = reference_linear_e4m3(*inputs, ACTIVATIONS[activation])
    same = linear_e4m3(*inputs, activation).float() == reference.float()  # as numbers: GELU's zeros may have signs
    assert float(same.float().mean()) > 0.9


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_same_result_from_a_cuda_graph_and_on_another_stream(cuda, activation):
    inputs = random_inputs(3456, 768, 3072, device=cuda)
    expected = linear_e4m3(*inputs, activation).view(torch.uint8)
    other = random_inputs(3456, 768, 3072, device=cuda)[0]
    expected_of_other = linear_e4m3(other, *inputs[1:], activation).view(torch.uint8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = linear_e4m3(*inputs, activation).view(torch.uint8)
    out.fill_(127)
    graph.replay()
    assert torch.equal(out, expected)
    inputs[0].copy_(other)
    graph.replay()
    assert torch.equal(out, expected_of_other)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        assert torch.equal(linear_e4m3(*inputs, activation).view(torch.uint8), expected_of_other)


@pytest.mark.gpu
def test_strides_and_no_rows(cuda):
    x, *others = random_inputs(64, 272, 512, device=cuda)  # a row of 17 times 16 bytes
    expected = linear_e4m3(x, *others, "relu").view(torch.uint8)
    assert torch.equal(linear_e4m3(x.t().contiguous().t(), *others, "relu").view(torch.uint8), expected)
    assert torch.equal(linear_e4m3(x[1:], *others, "relu").view(torch.uint8), expected[1:]), "at another alignment"
    assert linear_e4m3(x[:0], *others, "relu").shape == (0, 512)


@pytest.mark.gpu
def test_misfits_are_refused_on_a_gpu(cuda):
    x, weight, bias, scale, _, factor = random_inputs(device=cuda)
    for arguments, message in [
        ((x.float(), weight, bias, scale, scale, factor, 1), "x must be a float8_e4m3fn matrix"),
        ((x, weight[:, :16], bias, scale, scale, factor, 1), "weight must have as many columns as x"),
        ((x, weight[:40], bias[:40], scale, scale, factor, 1), "positive multiples of 16"),
        ((x, weight, bias.float(), scale, scale, factor, 1), "bias must be float16 or bfloat16"),
        ((x, weight, bias, scale.double(), scale, factor, 1), "x_scale must be one float32 number"),
        ((x, weight, bias, scale, scale.cpu(), factor, 1), "weight_scale must lie on the device of x"),
        ((x, weight, bias, scale, scale, factor, 3), "activation must be 0"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            OPERATOR(*arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["export", "aot"])
def test_same_result_exported(cuda, tmp_path, way):
    x, *others = random_inputs(100, 256, 512, device=cuda)
    inputs, layer = (x.float(), *others), Layer("gelu").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compilers warn about their own deprecated calls
        program = torch.export.export(layer, inputs)
        if way == "export":
            out = program.module()(*inputs)
        else:
            package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layer.pt2"))
            out = torch._inductor.aoti_load_package(package)(*inputs)
    assert torch.equal(out, layer(*inputs))
