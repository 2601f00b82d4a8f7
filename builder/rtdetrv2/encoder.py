"""Hybrid encoder: attention within the coarsest map, convolutions that fuse neighbouring maps.

Source: RT-DETR (arXiv 2304.08069), section 4.2; upstream `HybridEncoder`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.parts.layers import LayerNorm, MultiHeadAttention
from builder.rtdetrv2.config import HybridEncoderConfig
from builder.rtdetrv2.layers import ConvNorm, FeedForward, RepVGGBlock


class AttentionLayer(nn.Module):
    """Self-attention and a feed-forward network, each followed by a norm."""

    def __init__(self, config: HybridEncoderConfig) -> None:
        super().__init__()
        embed_dim = config.embed_dim
        self.self_attn = MultiHeadAttention(embed_dim, config.num_heads)
        self.norm1 = LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, config.feedforward_dim, config.attention_activation)
        self.norm2 = LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Return [B, N, C] for `tokens` [B, N, C] and `position` [1, N, C]."""
        placed = tokens + position  # the value carries no position
        tokens = self.norm1(tokens + self.self_attn(placed, placed, tokens))
        return self.norm2(tokens + self.ffn(tokens))


class FusionBlock(nn.Module):
    """Two maps side by side become one: a chain of RepVGG blocks and a shortcut, summed (upstream `CSPRepLayer`)."""

    def __init__(self, config: HybridEncoderConfig) -> None:
        super().__init__()
        embed_dim, inner, act = config.embed_dim, config.fusion_dim, config.activation
        self.conv1 = ConvNorm(2 * embed_dim, inner, 1, 1, act)
        self.conv2 = ConvNorm(2 * embed_dim, inner, 1, 1, act)
        self.bottlenecks = nn.Sequential(*(RepVGGBlock(inner, act) for _ in range(config.num_rep_blocks)))
        self.conv3 = nn.Identity() if inner == embed_dim else ConvNorm(inner, embed_dim, 1, 1, act)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return [B, C, h, w] for two maps [B, C, h, w]."""
        x = torch.cat([first, second], dim=1)
        return self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))


class HybridEncoder(nn.Module):
    """Backbone maps of any widths become as many maps of one width that know of each other."""

    def __init__(self, in_channels: tuple[int, ...], config: HybridEncoderConfig) -> None:
        super().__init__()
        embed_dim, act, steps = config.embed_dim, config.activation, len(in_channels) - 1
        self.attended, self.temperature = config.attended, config.temperature
        self.input_proj = nn.ModuleList(ConvNorm(channels, embed_dim, 1) for channels in in_channels)
        self.attention = nn.ModuleList(
            nn.ModuleList(AttentionLayer(config) for _ in range(config.num_layers)) for _ in config.attended
        )
        self.lateral_convs = nn.ModuleList(ConvNorm(embed_dim, embed_dim, 1, 1, act) for _ in range(steps))
        self.fpn_blocks = nn.ModuleList(FusionBlock(config) for _ in range(steps))
        self.downsample_convs = nn.ModuleList(ConvNorm(embed_dim, embed_dim, 3, 2, act) for _ in range(steps))
        self.pan_blocks = nn.ModuleList(FusionBlock(config) for _ in range(steps))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return maps [B, C, h, w] of the sizes of `features`, finest first; each side is twice the next one's."""
        maps = [project(feature) for project, feature in zip(self.input_proj, features, strict=True)]
        for i, layers in zip(self.attended, self.attention, strict=True):
            maps[i] = self._attend(maps[i], layers)
        top_down = self._top_down(maps)  # coarsest first, all but the last as the lateral convolutions left them
        outputs = [top_down.pop()]
        for down, block in zip(self.downsample_convs, self.pan_blocks, strict=True):
            outputs.append(block(down(outputs[-1]), top_down.pop()))
        return outputs

    def _top_down(self, maps: list[Tensor]) -> list[Tensor]:
        laterals, coarse = [], maps[-1]
        finer_maps = reversed(maps[:-1])
        for lateral, block, finer in zip(self.lateral_convs, self.fpn_blocks, finer_maps, strict=True):
            laterals.append(lateral(coarse))
            coarse = block(F.interpolate(laterals[-1], scale_factor=2.0, mode="nearest"), finer)
        return [*laterals, coarse]

    def _attend(self, feature: Tensor, layers: nn.Module) -> Tensor:
        h, w = feature.shape[2:]
        tokens = feature.flatten(2).transpose(1, 2)  # [B, h*w, C]
        position = position_embedding(h, w, tokens.shape[-1], self.temperature, tokens.device).to(tokens.dtype)
        for layer in layers.children():
            tokens = layer(tokens, position)
        return tokens.transpose(1, 2).unflatten(2, (h, w))


def position_embedding(h: int, w: int, channels: int, temperature: float, device: torch.device) -> Tensor:
    """Return float32 [1, h*w, channels]: sines and cosines of two numbers of each token, in four blocks.

    Upstream numbers a column-major grid while tokens are row-major, and models are trained with it: token k has the
    numbers k // h and k % h. On a square map these are row and column, on others neither.
    """
    token = torch.arange(h * w, device=device)
    exponent = torch.arange(channels // 4, dtype=torch.float32, device=device) / (channels // 4)
    frequency = 1.0 / temperature**exponent
    first = torch.div(token, h, rounding_mode="floor").float()[:, None] * frequency
    second = (token % h).float()[:, None] * frequency
    return torch.cat([first.sin(), first.cos(), second.sin(), second.cos()], dim=1).unsqueeze(0)
