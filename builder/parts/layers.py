"""Small layers shared by the parts of the network; statistics and softmax are float32 whatever the precision."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """Layer normalisation over the last dimension in float32; the result has the input's type.

    Squares of real Swin-L activations leave the range of float16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [..., C]."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """Group normalisation of [B, C, h, w] in float32; the result has the input's type."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` [B, C, h, w]."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class MLP(nn.Sequential):
    """Linear layers with ReLU between them: `MLP(256, 256, 4)` has two."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        super().__init__(*layers[:-1])


class Float32MLP(MLP):
    """An MLP from or to coordinates: its weights and arithmetic stay float32 in every precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [..., widths[-1]] of `x` [..., widths[0]]."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 large boxes would be a pixel off
            return super().forward(x)


class BoxHead(Float32MLP):
    """Box deltas (cx, cy, w, h) in logit space, float32 [..., 4] of [..., C]."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__(embed_dim, embed_dim, embed_dim, 4)


def attention(query: Tensor, key: Tensor, value: Tensor, *biases: Tensor) -> Tensor:
    """Scaled dot-product attention over [..., N, dim], written out with a float32 softmax.

    The fused operator is left alone on purpose: exporters disagree on its mask, and one takes it for a causal one
    unless told otherwise. `biases`, float32, are added to the scores one after the other and must broadcast to
    [..., N, N]; their sum may be far larger than they are, and as a constant it would be kept and read by an engine.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    for bias in biases:
        scores = scores + bias
    return F.softmax(scores, dim=-1).to(value.dtype) @ value


class MultiHeadAttention(nn.Module):
    """Multi-head attention with separate query, key and value; its weights have the names of PyTorch's own."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))  # rows of query, key and value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *biases: Tensor) -> Tensor:
        """Return [B, Q, C] for `query` [B, Q, C] and `key`, `value` [B, S, C].

        `biases`, float32, are added to the scores and must broadcast to [B, heads, Q, S].
        """
        weights, projection_biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, projection_biases, strict=True)
        )  # [B, heads, Q or S, dim]
        return self.out_proj(attention(query, key, value, *biases).transpose(1, 2).flatten(2))


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Return [B, Q, C], the tokens [B, S, C] at `indices` [B, Q]."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def per_channel(values: tuple[float, ...]) -> Tensor:
    """Return float32 [C, 1, 1]; on the CPU, so that a detector made on the meta device still has its constants."""
    return torch.tensor(values, device="cpu").view(-1, 1, 1)


# What keeps float32 parameters in a half-precision detector.
FLOAT32_LAYERS = (LayerNorm, GroupNorm, Float32MLP)
