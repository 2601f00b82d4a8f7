import pytest
import torch
from torch import nn

from builder.parts.layers import LayerNorm
from builder.parts.precision import convert
from builder.parts.resnet import FrozenBatchNorm2d


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_kept_layers_keep_their_exact_weights(dtype):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), FrozenBatchNorm2d(3), LayerNorm(3), nn.ReLU())
    network.register_buffer("count", torch.tensor(3))
    network[1].running_var.fill_(1.1e-7)
    network[2].weight.data.fill_(1.0001)
    convert(network, dtype, (LayerNorm, FrozenBatchNorm2d))
    wide = torch.promote_types(dtype, torch.float32)
    assert (network[0].weight.dtype, network[1].running_var.dtype, network[2].weight.dtype) == (dtype, wide, wide)
    assert network.count.dtype == torch.int64
    assert torch.equal(network[1].running_var.float(), torch.full((3,), 1.1e-7))
    assert torch.equal(network[2].weight.float(), torch.full((3,), 1.0001))
