import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor.decomposition import decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from builder.engines.torch_passes import ReLUInProduct

aten = torch.ops.aten


class Layers(nn.Module):
    """A product with an activation, as `between` has it between the two."""

    def __init__(self, between, bias=True):
        super().__init__()
        self.linear, self.between = nn.Linear(4, 6, bias=bias), between

    def forward(self, x):
        return self.between(self.linear(x))


def rewritten(module, x):
    """Return the module as Inductor sees it, rewritten, and how often it has each of three operators."""
    with torch.no_grad():
        traced = make_fx(module, decomposition_table=decompositions, tracing_mode="real")(x)
    ReLUInProduct()(traced.graph)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    targets = [node.target for node in traced.graph.nodes]
    return traced, [targets.count(op) for op in (aten.addmm.default, aten.relu.default, aten._addmm_activation.default)]


@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4)], ids=["matrix", "batch of sequences"])
def test_a_relu_goes_into_the_product_before_it(shape):
    module, x = Layers(F.relu).eval(), torch.randn(*shape)
    traced, counts = rewritten(module, x)
    assert counts == [0, 0, 1]
    torch.testing.assert_close(traced(x), module(x))


@pytest.mark.parametrize(
    ("between", "bias"),
    [
        pytest.param(F.gelu, True, id="another activation"),
        pytest.param(lambda y: F.relu(y) + y, True, id="the product is wanted elsewhere too"),
        pytest.param(lambda y: F.relu(y.view(5, 2, 3)) + y.view(5, 2, 3).sum(), True, id="its view is"),
        pytest.param(lambda y: F.relu(y + 1), True, id="something lies between"),
        pytest.param(F.relu, False, id="no bias"),
        pytest.param(lambda y: F.relu(torch.addmm(y, y[:, :5], y)), True, id="a matrix is added, not a bias"),
        pytest.param(lambda y: F.relu(torch.addmm(y[0], y[:, :5], y, alpha=2)), True, id="a scaled product"),
    ],
)
def test_what_the_library_has_no_call_for_stays(between, bias):
    module, x = Layers(between, bias).eval(), torch.randn(5, 4)
    traced, counts = rewritten(module, x)
    assert counts[2] == 0
    torch.testing.assert_close(traced(x), module(x))
