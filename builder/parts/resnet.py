"""ResNet backbone with bottleneck blocks and frozen batch statistics.

Source: Deep Residual Learning (arXiv 1512.03385), table 1; style `pytorch` strides in the 3x3 convolution, style
`caffe` in the first 1x1. The dilated last stage is torchvision's, as DETR uses it: its first block has no dilation.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.parts.resnet_config import ResNetConfig

EXPANSION = 4  # output channels of a bottleneck over its width


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with its stored statistics: one scale and one shift a channel, made in float32."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [B, C, h, w]."""
        scale, shift = self.scale_and_shift()
        return x * scale.to(x.dtype)[:, None, None] + shift.to(x.dtype)[:, None, None]

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return what each channel is multiplied by and what is added then, both float32 [C]."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a residual; the first block of a stage projects the residual."""

    def __init__(self, channels: int, width: int, stride: int, project: bool, caffe: bool, dilation: int = 1) -> None:
        super().__init__()
        stride1, stride2 = (stride, 1) if caffe else (1, stride)
        out_channels = width * EXPANSION
        self.conv1 = nn.Conv2d(channels, width, 1, stride=stride1, bias=False)
        self.bn1 = FrozenBatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride2, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = FrozenBatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = FrozenBatchNorm2d(out_channels)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False), FrozenBatchNorm2d(out_channels)
            )
            if project
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, 4*width, h/stride, w/stride] for `x` [B, C, h, w]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNet(nn.Module):
    """ResNet of bottleneck blocks, returning the raw C2..C5 maps of `out_indices`."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.out_indices = config.out_indices
        channels = config.stem_channels
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = FrozenBatchNorm2d(channels)
        self.layer = nn.ModuleDict()  # "1" to "4" are C2 to C5
        for i, blocks in enumerate(config.stage_blocks):
            width, dilated = config.base_channels * 2**i, config.dilated and i == len(config.stage_blocks) - 1
            stride = 1 if i == 0 or dilated else 2
            self.layer[str(i + 1)] = _stage(channels, width, blocks, stride, config.style == "caffe", 1 + dilated)
            channels = width * EXPANSION

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps at strides 4, 8, 16, 32 (if dilated: 16) in `out_indices` for `pixels` [B, 3, H, W]."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(pixels))), 3, stride=2, padding=1)
        outputs = []
        for i, stage in enumerate(self.layer.values()):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(x)
        return outputs


def _stage(channels: int, width: int, blocks: int, stride: int, caffe: bool, dilation: int) -> nn.Sequential:
    project = stride != 1 or channels != width * EXPANSION
    first = Bottleneck(channels, width, stride, project, caffe)
    rest = [Bottleneck(width * EXPANSION, width, 1, False, caffe, dilation) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def fold_batch_norms(backbone: ResNet) -> None:
    """Put every frozen batch norm into the convolution before it, which computes the same with one pass less."""
    for module in list(backbone.modules()):
        for (_, convolution), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(norm, FrozenBatchNorm2d) and isinstance(convolution, nn.Conv2d):
                scale, shift = norm.scale_and_shift()
                folded = convolution.weight.detach() * scale[:, None, None, None]
                convolution.weight = nn.Parameter(folded, requires_grad=False)
                convolution.bias = nn.Parameter(shift, requires_grad=False)
                setattr(module, name, nn.Identity())
