"""Decoder: the chosen tokens attend to each other and to the memory around boxes that every layer refines.

Source: RT-DETR (arXiv 2304.08069), section 4.1; upstream `TransformerDecoder`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from builder.parts.boxes import inverse_sigmoid
from builder.parts.layers import BoxHead, Float32MLP, LayerNorm, MultiHeadAttention
from builder.parts.position import Shapes
from builder.rtdetrv2.config import RTDETRv2Config
from builder.rtdetrv2.deformable import DeformableAttention
from builder.rtdetrv2.layers import FeedForward

# Boxes are kept this far from 0 and 1 when they return to logit space (upstream `inverse_sigmoid`).
SIGMOID_EPS = 1e-5


class PositionHead(Float32MLP):
    """Position embedding of box coordinates."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__(4, 2 * embed_dim, embed_dim)


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention and a feed-forward network, each followed by a norm."""

    def __init__(self, variant: RTDETRv2Config) -> None:
        super().__init__()
        embed_dim = variant.embed_dim
        self.self_attn = MultiHeadAttention(embed_dim, variant.num_heads)
        self.norm1 = LayerNorm(embed_dim)
        self.cross_attn = DeformableAttention(variant)
        self.norm2 = LayerNorm(embed_dim)
        self.ffn = FeedForward(embed_dim, variant.feedforward_dim, variant.activation)
        self.norm3 = LayerNorm(embed_dim)

    def forward(
        self,
        hidden: Tensor,
        position: Tensor,
        memory: Tensor,
        boxes: Tensor,
        shapes: Shapes,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return [B, Q, C] for `hidden` and `position` [B, Q, C]; `boxes` is float32 [B, Q, 4]."""
        placed = hidden + position  # the value carries no position
        masks = () if mask is None else (mask,)
        hidden = self.norm1(hidden + self.self_attn(placed, placed, hidden, *masks))
        hidden = self.norm2(hidden + self.cross_attn(hidden + position, memory, boxes, shapes))
        return self.norm3(hidden + self.ffn(hidden))


class DecoderOutput(NamedTuple):
    """What each decoder layer returned and was given."""

    hidden: list[Tensor]  # [B, Q, C] of each layer
    boxes: list[Tensor]  # float32 [B, Q, 4] cx cy w h in 0..1, as each layer refined them
    references: list[Tensor]  # float32 [B, Q, 4], as each layer received them; without gradients


class Decoder(nn.Module):
    """A stack of decoder layers with their box heads."""

    def __init__(self, variant: RTDETRv2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(variant) for _ in range(variant.decoder_layers))
        self.box_heads = nn.ModuleList(BoxHead(variant.embed_dim) for _ in range(variant.decoder_layers))
        self.position_head = PositionHead(variant.embed_dim)

    def forward(
        self, hidden: Tensor, boxes: Tensor, memory: Tensor, shapes: Shapes, mask: Tensor | None = None
    ) -> DecoderOutput:
        """Decode queries `hidden` [B, Q, C] at `boxes` float32 [B, Q, 4] over `memory` [B, S, C].

        `mask` float32 [Q, Q] is added to the scores of self-attention: -inf where a query must not see another. Only
        training has one.

        In training a layer's box has gradients to its own box head and to that of the layer before, and not further.
        """
        outputs = DecoderOutput([], [], [])
        given = boxes.detach()
        for layer, box_head in zip(self.layers, self.box_heads, strict=True):
            reference = given.detach()
            hidden = layer(hidden, self.position_head(reference).to(hidden.dtype), memory, reference, shapes, mask)
            delta = box_head(hidden)
            outputs.hidden.append(hidden)
            outputs.boxes.append(torch.sigmoid(delta + inverse_sigmoid(given, SIGMOID_EPS)))
            outputs.references.append(reference)
            given = torch.sigmoid(delta + inverse_sigmoid(reference, SIGMOID_EPS))
        return outputs
