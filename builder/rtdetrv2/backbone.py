"""ResNet-vd. Source: Bag of Tricks (arXiv 1812.01187), ResNet-D; upstream `PResNet`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.rtdetrv2.config import PResNetConfig
from builder.rtdetrv2.layers import ACTIVATIONS, ConvNorm


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1, around a residual.

    The first block of a stage projects its residual; where it halves the map, the residual is averaged before.
    """

    def __init__(self, channels: int, width: int, stride: int, first: bool, config: PResNetConfig) -> None:
        super().__init__()
        act, frozen = config.activation, config.frozen_norm
        self.stride, self.activation = stride, act
        if config.has_bottlenecks:
            out_channels = 4 * width
            self.convs = nn.Sequential(
                ConvNorm(channels, width, 1, 1, act, frozen),
                ConvNorm(width, width, 3, stride, act, frozen),
                ConvNorm(width, out_channels, 1, frozen=frozen),
            )
        else:
            out_channels = width
            self.convs = nn.Sequential(
                ConvNorm(channels, width, 3, stride, act, frozen), ConvNorm(width, width, 3, frozen=frozen)
            )
        self.short = ConvNorm(channels, out_channels, 1, frozen=frozen) if first else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, out_channels, ceil(h/stride), ceil(w/stride)] for `x` [B, C, h, w]."""
        residual = x if self.stride == 1 else average_pool(x)
        return ACTIVATIONS[self.activation](self.convs(x) + self.short(residual))


def average_pool(x: Tensor) -> Tensor:
    """Return [B, C, ceil(h/2), ceil(w/2)], the means of 2x2 windows of `x` [B, C, h, w].

    At an odd side the last window has the pixels that there are. Repeating them gives the same mean as PyTorch's
    `ceil_mode`, on which engines disagree.
    """
    if x.shape[2] % 2:
        x = torch.cat([x, x[:, :, -1:]], dim=2)
    if x.shape[3] % 2:
        x = torch.cat([x, x[:, :, :, -1:]], dim=3)
    return F.avg_pool2d(x, 2)


class PResNet(nn.Module):
    """ResNet-18 to -101 with vd stem and shortcuts, returning the raw maps of `out_indices`."""

    def __init__(self, config: PResNetConfig) -> None:
        super().__init__()
        self.out_indices = config.out_indices
        channels, act, frozen = config.stem_channels, config.activation, config.frozen_norm
        self.stem = nn.Sequential(
            ConvNorm(3, channels // 2, 3, 2, act, frozen),
            ConvNorm(channels // 2, channels // 2, 3, 1, act, frozen),
            ConvNorm(channels // 2, channels, 3, 1, act, frozen),
        )
        self.stages = nn.ModuleList()
        for i, (blocks, width, out_channels) in enumerate(
            zip(config.blocks, config.widths, config.stage_channels, strict=True)
        ):
            first = Block(channels, width, 1 if i == 0 else 2, True, config)
            rest = [Block(out_channels, width, 1, False, config) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            channels = out_channels

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the maps at strides 4, 8, 16, 32 in `out_indices` for `pixels` [B, 3, H, W]; sides round up."""
        x = F.max_pool2d(self.stem(pixels), 3, stride=2, padding=1)
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(x)
        return outputs
