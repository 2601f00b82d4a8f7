"""ResNet against a second statement of it, made of `torch.nn.functional` calls on the same state dict."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from builder.co_dino.config import ResNetConfig
from builder.parts.resnet import FrozenBatchNorm2d, ResNet, fold_batch_norms


def functional_resnet(state, x, blocks, style="pytorch", dilated=False):
    def conv_bn(x, conv, bn, stride=1, padding=0, dilation=1):
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=padding, dilation=dilation)
        keys = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (state[f"{bn}.{key}"] for key in keys)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=1e-5)

    x = F.max_pool2d(F.relu(conv_bn(x, "conv1", "bn1", 2, 3)), 3, 2, 1)
    outputs = []
    for stage, depth in enumerate(blocks, start=1):
        for i in range(depth):
            name, last = f"layer.{stage}.{i}", dilated and stage == len(blocks)
            stride, dilation = 2 if stage > 1 and i == 0 and not last else 1, 2 if last and i > 0 else 1
            first, second = (stride, 1) if style == "caffe" else (1, stride)
            out = F.relu(conv_bn(x, f"{name}.conv1", f"{name}.bn1", first))
            out = F.relu(conv_bn(out, f"{name}.conv2", f"{name}.bn2", second, dilation, dilation))
            out = conv_bn(out, f"{name}.conv3", f"{name}.bn3")
            x = conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride) if i == 0 else x
            x = F.relu(out + x)
        outputs.append(x)
    return outputs


def trained(config):
    """Return a backbone whose batch norms do something."""
    torch.manual_seed(0)
    backbone = ResNet(config)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    return backbone


@pytest.mark.parametrize(
    ("depth", "blocks", "style"),
    [
        (50, (3, 4, 6, 3), "pytorch"),
        (50, (3, 4, 6, 3), "caffe"),
        (101, (3, 4, 23, 3), "pytorch"),
        (152, (3, 8, 36, 3), "pytorch"),
    ],
)
def test_equals_its_functional_form(depth, blocks, style):
    backbone = trained(ResNetConfig(depth, base_channels=4, stem_channels=6, style=style))
    pixels = torch.randn(2, 3, 65, 98)
    expected = functional_resnet(backbone.state_dict(), pixels, blocks, style)
    for actual, reference in zip(backbone(pixels), expected, strict=True):
        torch.testing.assert_close(actual, reference, atol=1e-4, rtol=1e-4)


def test_dead_channels_are_normalised_with_the_same_epsilon():
    """Trained networks have channels whose variance is far below it."""
    norm = FrozenBatchNorm2d(3)
    norm.running_var.copy_(torch.tensor([0.0, 1e-6, 1e-4]))
    x = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
    torch.testing.assert_close(norm(x), expected)


OWN_BLOCKS = ResNetConfig(base_channels=4, stem_channels=6, blocks=(1, 2, 1, 3))


@pytest.mark.parametrize("dilated", [False, True])
def test_own_blocks_and_a_dilated_last_stage(dilated):
    """DC5: the first block of the last stage has neither stride nor dilation, the others have dilation 2."""
    backbone = trained(replace(OWN_BLOCKS, dilated=dilated))
    pixels = torch.randn(1, 3, 65, 98)
    maps = backbone(pixels)
    assert maps[-1].shape[2:] == ((5, 7) if dilated else (3, 4))
    expected = functional_resnet(backbone.state_dict(), pixels, (1, 2, 1, 3), dilated=dilated)
    for actual, reference in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folded_norms_compute_the_same(dtype):
    backbone = trained(OWN_BLOCKS).to(dtype)
    pixels = torch.randn(1, 3, 65, 98, dtype=dtype)
    expected = backbone(pixels)
    fold_batch_norms(backbone)
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules())
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    for actual, reference in zip(backbone(pixels), expected, strict=True):
        torch.testing.assert_close(actual, reference, atol=tolerance, rtol=tolerance)
