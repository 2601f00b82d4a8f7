"""Deformable encoder. Source: Deformable DETR (arXiv 2010.04159), section 4.1; post-norm, no final norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from builder.co_dino.config import Variant
from builder.co_dino.deformable import MultiScaleDeformableAttention
from builder.parts.layers import MLP, LayerNorm
from builder.parts.position import Shapes, token_centres, valid_ratios


class EncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each followed by a norm."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        embed_dim = variant.embed_dim
        self.self_attn = MultiScaleDeformableAttention(variant)
        self.norm1 = LayerNorm(embed_dim)
        self.ffn = MLP(embed_dim, variant.feedforward_dim, embed_dim)
        self.norm2 = LayerNorm(embed_dim)

    def forward(
        self, tokens: Tensor, position: Tensor, reference_points: Tensor, shapes: Shapes, valid_shapes: Tensor
    ) -> Tensor:
        """Return [B, S, C] for `tokens` and `position` [B, S, C]; only the query carries the position."""
        attended = self.self_attn(tokens + position, tokens, reference_points, shapes, valid_shapes)
        tokens = self.norm1(tokens + attended)
        return self.norm2(tokens + self.ffn(tokens))


class Encoder(nn.Module):
    """A stack of encoder layers over the tokens of all levels."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(variant) for _ in range(variant.encoder_layers))

    def forward(self, tokens: Tensor, position: Tensor, shapes: Shapes, valid_shapes: Tensor) -> Tensor:
        """Return the memory [B, S, C] of `tokens` [B, S, C] with their `position` embedding [B, S, C]."""
        reference_points = encoder_reference_points(shapes, valid_shapes)
        for layer in self.layers:
            tokens = layer(tokens, position, reference_points, shapes, valid_shapes)
        return tokens


def encoder_reference_points(shapes: Shapes, valid_shapes: Tensor) -> Tensor:
    """Return float32 [B, S, L, 2]: each token's centre (x, y) in 0..1 of every whole level."""
    centres = torch.cat([token_centres(shape, valid_shapes[:, i]) for i, shape in enumerate(shapes)], dim=1)
    return centres[:, :, None] * valid_ratios(valid_shapes, shapes)[:, None]
