import pytest
import torch
from torch import nn

from builder.parts.resnet import FrozenBatchNorm2d
from builder.rtdetrv2.backbone import average_pool
from builder.rtdetrv2.layers import BatchNorm2d, ConvNorm, RepVGGBlock, fold


def with_statistics(module):
    """The module in evaluation mode, with norms that are far from doing nothing."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, (BatchNorm2d, FrozenBatchNorm2d)):
            for tensor in (norm.weight, norm.running_var):
                tensor.data.uniform_(0.3, 3)
            for tensor in (norm.bias, norm.running_mean):
                tensor.data.normal_()
    return module.eval()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_folded_convolution_is_the_same(frozen, stride):
    module = with_statistics(ConvNorm(3, 5, 3, stride, "silu", frozen)).double()
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    expected = module(x)
    fold(module)
    torch.testing.assert_close(module(x), expected)
    assert set(module.state_dict()) == {"conv.weight", "conv.bias"}


def test_a_folded_block_is_one_convolution():
    block = with_statistics(RepVGGBlock(4, "relu")).double()
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    expected = block(x)
    fold(block)
    torch.testing.assert_close(block(x), expected)
    assert [type(module) for module in block.modules() if isinstance(module, nn.Conv2d)] == [nn.Conv2d]
    fold(block)  # once more changes nothing
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("trains", [True, False])
def test_folding_keeps_whether_weights_train(trains):
    module = ConvNorm(3, 4, 1).requires_grad_(trains)
    module.fold()
    assert {parameter.requires_grad for parameter in module.parameters()} == {trains}


def test_a_batch_norm_trains_as_pytorchs_does():
    torch.manual_seed(0)
    ours, theirs = BatchNorm2d(3), nn.BatchNorm2d(3)
    for _ in range(3):
        x = torch.randn(2, 3, 4, 4) * 3 + 1
        torch.testing.assert_close(ours(x), theirs(x))
    assert set(ours.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name])
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_a_batch_norm_in_half_precision_computes_in_float32():
    norm = with_statistics(BatchNorm2d(2))
    norm.running_var.fill_(1e-7)  # zero in half precision, below eps
    x = torch.randn(1, 2, 3, 3).half() / 100
    out = norm(x)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), norm(x.float()), atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (5, 7), (1, 1)])
def test_average_pool_at_odd_sides_has_the_pixels_that_there_are(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = nn.functional.avg_pool2d(x, 2, 2, ceil_mode=True)
    torch.testing.assert_close(average_pool(x), expected)
