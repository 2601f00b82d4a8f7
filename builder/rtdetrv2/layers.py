"""Convolutions with batch norms, how they fold once training is over, and a feed-forward network."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.parts.resnet import FrozenBatchNorm2d
from builder.rtdetrv2.config import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "leaky_relu": F.leaky_relu,
}
MOMENTUM = 0.1  # of the running statistics in training


class BatchNorm2d(nn.Module):
    """Batch normalisation that trains, in float32 or wider; without PyTorch's counter, which nothing reads."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [B, C, h, w]; the result has its type."""
        statistics = (self.running_mean, self.running_var)
        out = F.batch_norm(
            x.to(self.weight.dtype), *statistics, self.weight, self.bias, self.training, MOMENTUM, self.eps
        )
        return out.to(x.dtype)


class ConvNorm(nn.Module):
    """Convolution without bias and batch norm, or after `fold` one convolution with bias; then an activation."""

    norm: BatchNorm2d | FrozenBatchNorm2d | nn.Identity

    def __init__(
        self,
        channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        activation: Activation | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels, kernel, stride, (kernel - 1) // 2, bias=False)
        self.norm = FrozenBatchNorm2d(out_channels) if frozen else BatchNorm2d(out_channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, out_channels, ceil(h/stride), ceil(w/stride)] for `x` [B, C, h, w]."""
        x = self.norm(self.conv(x))
        return x if self.activation is None else ACTIVATIONS[self.activation](x)

    def fold(self) -> None:
        """Replace convolution and norm, with its stored statistics, by one convolution."""
        if isinstance(self.norm, nn.Identity):
            return
        norm, kernel = self.norm, self.conv.weight.detach().double()
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        bias = norm.bias.detach().double() - norm.running_mean.double() * scale
        _replace(self.conv, kernel * scale[:, None, None, None], bias)
        self.norm = nn.Identity()


class RepVGGBlock(nn.Module):
    """A 3x3 and a 1x1 convolution side by side, or after `fold` one of 3x3. Source: RepVGG (arXiv 2101.03697)."""

    conv2: ConvNorm | None

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C, h, w] for `x` [B, C, h, w]."""
        out = self.conv1(x)
        return ACTIVATIONS[self.activation](out if self.conv2 is None else out + self.conv2(x))

    def fold(self) -> None:
        """Replace both branches by one convolution."""
        if self.conv2 is None:
            return
        self.conv1.fold()
        self.conv2.fold()
        large, small = self.conv1.conv, self.conv2.conv
        assert large.bias is not None  # folding gave them
        assert small.bias is not None
        kernel = large.weight.detach().double() + F.pad(small.weight.detach().double(), [1, 1, 1, 1])
        _replace(large, kernel, (large.bias + small.bias).detach())
        self.conv2 = None


class FeedForward(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, embed_dim: int, hidden_dim: int, activation: Activation) -> None:
        super().__init__()
        self.linear1 = nn.Linear(embed_dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, embed_dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., C] for `x` [..., C]."""
        return self.linear2(ACTIVATIONS[self.activation](self.linear1(x)))


def fold(network: nn.Module) -> None:
    """Fold every batch norm and every RepVGG block of a network, in place."""
    for module in list(network.modules()):
        if isinstance(module, (RepVGGBlock, ConvNorm)):
            module.fold()


def _replace(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Give a convolution another weight and a bias, of the type of its own."""
    dtype, trains = conv.weight.dtype, conv.weight.requires_grad
    conv.weight, conv.bias = nn.Parameter(weight.to(dtype), trains), nn.Parameter(bias.to(dtype), trains)
