"""Small layers shared by the parts of the network; statistics and softmax are float32 whatever the precision."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF_TYPES = (torch.float16, torch.bfloat16)


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
    """Scaled dot-product attention over [..., N, dim] with a float32 softmax.

    It is written out but for what PyTorch has a fused kernel for on a GPU: half precision, no bias. Exporters disagree
    on the mask of the fused operator, and one takes it for a causal one unless told otherwise. `biases`, float32, are
    added to the scores one after the other and must broadcast to [..., N, N]; their sum may be far larger than they
    are, and as a constant it would be kept and read by an engine.
    """
    if query.is_cuda and query.dtype in HALF_TYPES and not biases:
        return F.scaled_dot_product_attention(query, key, value)
    return written_out_attention(query, key, value, *biases)


def written_out_attention(query: Tensor, key: Tensor, value: Tensor, *biases: Tensor) -> Tensor:
    """Compute `attention` in simple operators."""
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
        heads = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in self._project(query, key, value))
        return self.out_proj(attention(*heads, *biases).transpose(1, 2).flatten(2))  # of [B, heads, Q or S, dim]

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three projections; one product makes query and key of the same tensor."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        value = F.linear(value, weights[2], biases[2])
        if query is key:
            channels = 2 * weights[0].shape[0]
            query, key = F.linear(query, self.in_proj_weight[:channels], self.in_proj_bias[:channels]).chunk(2, -1)
            return query, key, value
        return F.linear(query, weights[0], biases[0]), F.linear(key, weights[1], biases[1]), value


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Return [B, Q, C], the tokens [B, S, C] at `indices` [B, Q]."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def per_channel(values: tuple[float, ...]) -> Tensor:
    """Return float32 [C, 1, 1]; on the CPU, so that a detector made on the meta device still has its constants."""
    return torch.tensor(values, device="cpu").view(-1, 1, 1)


# What keeps float32 parameters in a half-precision detector.
FLOAT32_LAYERS = (LayerNorm, GroupNorm, Float32MLP)
