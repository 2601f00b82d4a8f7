"""Swin Transformer backbone.

Source: Swin Transformer (arXiv 2103.14030), section 3, with the padding and channel order of mmdetection's
`swin.py`: windows are zero-padded after the first norm, and padding takes part in the attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.co_dino.config import SwinConfig
from builder.parts.layers import LayerNorm, attention

# Added to the score of a pair that shares a shifted window but no neighbourhood (mmdetection `ShiftWindowMSA`).
REGION_PENALTY = -100.0


class WindowAttention(nn.Module):
    """Multi-head self-attention inside square windows, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, num_heads: int, window_size: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads, self.window_size = num_heads, window_size
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, windows: Tensor, region_bias: Tensor | None) -> Tensor:
        """Attend within each of `windows` [B, nW, N, C]; `region_bias` is float32 [nW, 1, N, N]."""
        query, key, value = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5)
        biases = [self._position_bias()] if region_bias is None else [self._position_bias(), region_bias]
        out = attention(query, key, value, *biases)  # [B, nW, heads, N, d]
        return self.proj(out.transpose(2, 3).flatten(3))

    def _position_bias(self) -> Tensor:
        """Return float32 [heads, N, N]."""
        tokens = self.window_size**2
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        return bias.float().view(tokens, tokens, self.num_heads).permute(2, 0, 1)


class SwinBlock(nn.Module):
    """(Shifted) window attention and a two-layer MLP, each behind a norm and a residual."""

    def __init__(self, config: SwinConfig, dim: int, num_heads: int, shifted: bool) -> None:
        super().__init__()
        self.window_size, self.shift = config.window_size, config.window_size // 2 if shifted else 0
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, config.window_size, config.qkv_bias)
        self.norm2 = LayerNorm(dim)
        self.fc1 = nn.Linear(dim, int(dim * config.mlp_ratio))
        self.fc2 = nn.Linear(int(dim * config.mlp_ratio), dim)

    def forward(self, x: Tensor, region_bias: Tensor) -> Tensor:
        """Return [B, h, w, C] for `x` of the same shape."""
        x = x + self._window_attention(self.norm1(x), region_bias if self.shift else None)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def _window_attention(self, x: Tensor, region_bias: Tensor | None) -> Tensor:
        _, h, w, _ = x.shape
        x = pad_to_multiple(x, self.window_size)
        padded = x.shape[1:3]
        x = x.roll((-self.shift, -self.shift), (1, 2)) if self.shift else x
        windows = self.attn(partition_windows(x, self.window_size), region_bias)
        x = merge_windows(windows, *padded)
        x = x.roll((self.shift, self.shift), (1, 2)) if self.shift else x
        return x[:, :h, :w]


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
        self.window_size = config.window_size
        dim, heads = config.embed_dim * 2**index, config.num_heads[index]
        self.blocks = nn.ModuleList(
            SwinBlock(config, dim, heads, shifted=i % 2 == 1) for i in range(config.depths[index])
        )
        self.downsample = nn.Identity() if index == len(config.depths) - 1 else PatchMerging(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, h, w, C], the blocks' output before `downsample`, for `x` of the same shape."""
        region_bias = shifted_region_bias(x.shape[1], x.shape[2], self.window_size, x.device)
        for block in self.blocks:
            x = block(x, region_bias)
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


def relative_position_index(window_size: int) -> Tensor:
    """Return int64 [N, N]: the row of the bias table for each pair of the N = window_size**2 tokens."""
    side = torch.arange(window_size, device="cpu")  # a constant even in a network made on the meta device
    y, x = torch.meshgrid(side, side, indexing="ij")
    dy = y.flatten()[:, None] - y.flatten() + window_size - 1
    dx = x.flatten()[:, None] - x.flatten() + window_size - 1
    return dy * (2 * window_size - 1) + dx


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad `x` [B, h, w, C] at the bottom and right to multiples of `multiple`."""
    _, h, w, _ = x.shape
    return F.pad(x, (0, 0, 0, -w % multiple, 0, -h % multiple))


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Cut `x` [B, h, w, C] into windows [B, nW, window_size**2, C], in row-major order."""
    _, h, w, _ = x.shape
    x = x.unflatten(2, (w // window_size, window_size)).unflatten(1, (h // window_size, window_size))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def merge_windows(windows: Tensor, h: int, w: int) -> Tensor:
    """Undo `partition_windows` for a map of `h` x `w` tokens."""
    size = int(windows.shape[2] ** 0.5)
    x = windows.unflatten(2, (size, size)).unflatten(1, (h // size, w // size))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def shifted_region_bias(h: int, w: int, window_size: int, device: torch.device) -> Tensor:
    """Return float32 [nW, 1, N, N]: REGION_PENALTY between tokens that only the shift brought into one window."""
    rows = _regions(h, window_size, device)[:, None]
    columns = _regions(w, window_size, device)[None, :]
    regions = partition_windows((3 * rows + columns)[None, :, :, None], window_size)[0, :, :, 0]  # [nW, N]
    differ = regions[:, None, :] != regions[:, :, None]
    return REGION_PENALTY * differ.float().unsqueeze(1)


def _regions(length: int, window_size: int, device: torch.device) -> Tensor:
    """Number the tokens of one padded side 0, 1, 2: cut at one window and at half a window from its end."""
    padded = length + -length % window_size
    position = torch.arange(padded, device=device)
    return (position >= padded - window_size).long() + (position >= padded - window_size // 2).long()
