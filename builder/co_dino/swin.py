"""Swin Transformer backbone.

Source: Swin Transformer (arXiv 2103.14030), section 3, with the padding and channel order of mmdetection's
`swin.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.co_dino.config import SwinConfig
from builder.operators.window_attention import window_attention
from builder.parts.layers import LayerNorm


class WindowAttention(nn.Module):
    """Multi-head self-attention inside square windows, with a learned bias for each relative position."""

    def __init__(self, config: SwinConfig, dim: int, num_heads: int, shifted: bool) -> None:
        super().__init__()
        self.window_size, self.shift = config.window_size, config.window_size // 2 if shifted else 0
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * config.window_size - 1) ** 2, num_heads))
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, h, w, C] for `x` of the same shape."""
        qkv, table = self.qkv(x), self.relative_position_bias_table
        return self.proj(window_attention(qkv, self.qkv.bias, table, self.window_size, self.shift))


class SwinBlock(nn.Module):
    """(Shifted) window attention and a two-layer MLP, each behind a norm and a residual."""

    def __init__(self, config: SwinConfig, dim: int, num_heads: int, shifted: bool) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(config, dim, num_heads, shifted)
        self.norm2 = LayerNorm(dim)
        self.fc1 = nn.Linear(dim, int(dim * config.mlp_ratio))
        self.fc2 = nn.Linear(int(dim * config.mlp_ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, h, w, C] for `x` of the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PatchMerging(nn.Module):
    """Halve the resolution: every 2x2 patch of tokens becomes one token of twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, ceil(h/2), ceil(w/2), 2C] for `x` [B, h, w, C]; channels merge in the order (c, y, x)."""
        x = pad_to_multiple(x, 2)
        _, h, w, _ = x.shape
        x = x.unflatten(2, (w // 2, 2)).unflatten(1, (h // 2, 2))  # [B, h/2, 2, w/2, 2, C]
        return self.reduction(self.norm(x.permute(0, 1, 3, 5, 2, 4).flatten(3)))


class SwinStage(nn.Module):
    """Blocks of one resolution, every second one shifted, and the merging that leads to the next stage."""

    def __init__(self, config: SwinConfig, index: int) -> None:
        super().__init__()
        dim, heads = config.embed_dim * 2**index, config.num_heads[index]
        self.blocks = nn.ModuleList(
            SwinBlock(config, dim, heads, shifted=i % 2 == 1) for i in range(config.depths[index])
        )
        self.downsample = nn.Identity() if index == len(config.depths) - 1 else PatchMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, h, w, C], the blocks' output before `downsample`, for `x` of the same shape."""
        for block in self.blocks:
            x = block(x)
        return x


class SwinTransformer(nn.Module):
    """Swin backbone returning one normalised feature map for each of `config.out_indices`."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.patch_embed = nn.Conv2d(3, config.embed_dim, config.patch_size, stride=config.patch_size)
        self.patch_norm = LayerNorm(config.embed_dim)
        self.stages = nn.ModuleList(SwinStage(config, i) for i in range(len(config.depths)))
        self.norms = nn.ModuleDict({str(i): LayerNorm(config.embed_dim * 2**i) for i in config.out_indices})

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return [B, C*2**i, h_i, w_i] of each output stage for `pixels` [B, 3, H, W]."""
        x = self.patch_norm(self.patch_embed(self._pad_to_patches(pixels)).permute(0, 2, 3, 1))  # [B, h, w, C]
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if str(i) in self.norms:
                outputs.append(self.norms[str(i)](x).permute(0, 3, 1, 2).contiguous())
            x = stage.get_submodule("downsample")(x)
        return outputs

    def _pad_to_patches(self, pixels: Tensor) -> Tensor:
        H, W = pixels.shape[2:]
        return F.pad(pixels, (0, -W % self.patch_size, 0, -H % self.patch_size))


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad `x` [B, h, w, C] at the bottom and right to multiples of `multiple`."""
    _, h, w, _ = x.shape
    return F.pad(x, (0, 0, 0, -w % multiple, 0, -h % multiple))
