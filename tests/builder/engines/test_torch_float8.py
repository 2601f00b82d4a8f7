"""Programs of small modules on the CPU, as `build` has them on a GPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim
from torch.fx import Interpreter

from builder.engines.torch_float8 import join_float8_layers
from builder.operators.linear_e4m3 import E4M3_MAX
from builder.parts.layers import MLP, LayerNorm
from builder.pipeline.export import uses_operator
from builder.quantise.calibration import Range
from builder.quantise.layers import Float8Linear

aten, OPERATOR = torch.ops.aten, torch.ops.codetr.linear_e4m3.default
WIDTH, HIDDEN = 32, 64
GELU_BY_TANH = 4.8e-4  # how far it is from GELU


class TransformerMLP(nn.Module):
    """The second half of a block of Swin Transformer."""

    def __init__(self):
        super().__init__()
        self.norm, self.fc1, self.fc2 = LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Between(nn.Module):
    """Two layers with what a test wants between them."""

    def __init__(self, between, bias=True, layers=(WIDTH, HIDDEN, HIDDEN, WIDTH)):
        super().__init__()
        width, hidden, hidden_again, out = layers
        self.first, self.second = nn.Linear(width, hidden, bias), nn.Linear(hidden_again, out)
        self.between = between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


def quantised(module, half=torch.float16, largest=4.0):
    """Return the module with FP8 layers, whose inputs go up to `largest`."""
    module = module.to(half).eval()
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, Float8Linear(layer, Range(-largest, largest)))
    return module


def exported(module, x, dynamic=False):
    shapes = ({0: Dim("batch", min=1, max=4)},) if dynamic else None
    return torch.export.export(module, (x,), dynamic_shapes=shapes, strict=True)


def count(program, operator):
    return sum(node.target is operator for node in program.graph.nodes)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed batch", "open batch"])
@pytest.mark.parametrize(
    ("module", "joined"),
    [
        pytest.param(lambda: MLP(WIDTH, HIDDEN, WIDTH), 1, id="encoder's FFN"),
        pytest.param(TransformerMLP, 1, id="MLP of Swin"),
        pytest.param(
            lambda: nn.Sequential(TransformerMLP(), TransformerMLP(), MLP(WIDTH, HIDDEN, WIDTH)), 3, id="many"
        ),
        pytest.param(lambda: MLP(WIDTH, HIDDEN, HIDDEN, WIDTH), 2, id="three layers"),
    ],
)
def test_pairs_become_one_operator(module, joined, half, dynamic):
    module = quantised(module(), half)
    x = torch.randn(2, 5, WIDTH, dtype=half)
    program = exported(module, x, dynamic)
    layers = count(program, aten._scaled_mm.default)
    assert not uses_operator(program)
    assert join_float8_layers(program) == joined
    assert [count(program, each) for each in (OPERATOR, aten._scaled_mm.default)] == [joined, layers - joined]
    assert count(program, aten.relu.default) + count(program, aten.gelu.default) == 0
    assert uses_operator(program), "so the library is put beside the package"
    assert join_float8_layers(program) == 0, "nothing is left to do"
    for batch in (2, 3) if dynamic else (2,):
        x = torch.randn(batch, 5, WIDTH, dtype=half)
        expected = module(x).float()
        off = (program.module()(x).float() - expected).norm() / expected.norm()
        assert off < 0.04  # bfloat16 has four bits more than E4M3, which itself loses 0.03 at each layer


def test_a_pair_that_does_not_work_is_left():
    def works(weight, bias, activation):
        asked.append((tuple(weight.shape), bias.dtype, activation))
        return activation == "relu"

    asked = []
    program = exported(
        quantised(nn.Sequential(TransformerMLP(), MLP(WIDTH, HIDDEN, WIDTH))), torch.randn(2, 5, WIDTH).half()
    )
    assert join_float8_layers(program, works) == 1
    assert asked == [((HIDDEN, WIDTH), torch.float16, name) for name in ("gelu", "relu")]
    assert [count(program, each) for each in (aten.gelu.default, aten.relu.default)] == [1, 0]


def test_the_result_is_the_same_where_half_precision_rounds_nothing():
    """Whole numbers with a ReLU: float16 has them all, up to 2048."""
    module = MLP(WIDTH, HIDDEN, WIDTH)
    for layer in module[0], module[2]:
        layer.weight.data = torch.randint(-3, 4, layer.weight.shape).float()
        layer.weight.data[:, 0] = E4M3_MAX / 32  # the largest: the scale is a power of two
        layer.bias.data = torch.randint(-9, 10, layer.bias.shape).float()
    module = quantised(module, largest=E4M3_MAX / 8)
    x = torch.randint(-3, 4, (7, 4, WIDTH)).half()
    program = exported(module, x)
    expected = program.module()(x)
    assert join_float8_layers(program) == 1
    assert torch.equal(program.module()(x), expected)
    assert expected.unique().numel() > 100


class Watched(Interpreter):
    """Runs a program and keeps the result of one of its nodes."""

    def __init__(self, program, name):
        super().__init__(program.module())
        self.name, self.result = name, None

    def run_node(self, n):
        result = super().run_node(n)
        if n.name == self.name:
            self.result = result.float()
        return result


def rounded_last(program, x):
    """Return what the last rounding or joined pair makes of `x`."""
    roundings = [
        each.name for each in program.graph.nodes if each.target is OPERATOR or torch.float8_e4m3fn in each.args
    ]
    watched = Watched(program, roundings[-1])
    watched.run(x)
    return watched.result


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_what_is_between_moves_by_no_more_than_the_rounding(activation):
    """To the next number of E4M3 at most; near zero, where its steps are small, by the approximation of GELU."""
    module = quantised(Between(getattr(F, activation)))
    x = torch.randn(40, 5, WIDTH).half() * 2
    program = exported(module, x)
    before = rounded_last(program, x)
    assert join_float8_layers(program) == 1
    after = rounded_last(program, x)
    step = torch.maximum(before.abs(), after.abs()).clamp(min=2**-6) / 8
    off = GELU_BY_TANH * float(module.second.input_factor) if activation == "gelu" else 0
    assert ((before - after).abs() <= step + off).all()
    assert (before == after).float().mean() > 0.9


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(lambda: Between(F.relu, bias=False), id="no bias"),
        pytest.param(lambda: Between(F.silu), id="another activation"),
        pytest.param(lambda: Between(lambda y: y), id="no activation"),
        pytest.param(lambda: Between(lambda y: F.relu(y) + y), id="the product is wanted elsewhere too"),
        pytest.param(lambda: Between(lambda y: F.relu(y + 1)), id="something lies between"),
        pytest.param(lambda: Between(lambda y: F.relu(y).transpose(0, 1)), id="tokens change places"),
        pytest.param(lambda: Between(lambda y: F.relu(F.relu(y))), id="two activations"),
        pytest.param(
            lambda: Between(lambda y: F.relu(y).unflatten(-1, (2, -1)), layers=(WIDTH, HIDDEN, WIDTH, 16)),
            id="other rows",
        ),
    ],
)
def test_what_the_operator_does_not_do_stays(module):
    module = quantised(module())
    x = torch.randn(2, 5, WIDTH).half()
    program = exported(module, x)
    text = str(program.graph)
    assert join_float8_layers(program) == 0
    assert str(program.graph) == text
    assert torch.equal(program.module()(x), module(x))


def test_a_layer_that_nothing_is_rounded_after_stays():
    module = quantised(nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU()))
    program = exported(module, torch.randn(5, WIDTH).half())
    assert join_float8_layers(program) == 0


def test_an_activation_that_two_layers_read_stays():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

        def forward(self, x):
            y = F.relu(self.first(x))
            return self.second(y) + self.third(y)

    program = exported(quantised(Twice()), torch.randn(5, WIDTH).half())
    assert join_float8_layers(program) == 0
