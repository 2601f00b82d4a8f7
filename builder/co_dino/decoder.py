"""DINO decoder: content queries attend to the memory around boxes that every layer refines.

Source: DINO (arXiv 2203.03605), section 3; mmdetection `DinoTransformerDecoder`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from builder.co_dino.config import Variant
from builder.co_dino.deformable import MultiScaleDeformableAttention
from builder.parts.boxes import inverse_sigmoid
from builder.parts.layers import MLP, BoxHead, LayerNorm, MultiHeadAttention
from builder.parts.position import Shapes, sine_embedding, valid_ratios

# Of the decoder's box embedding (DAB-DETR, arXiv 2201.12329); the encoder's is a setting of the variant.
BOX_TEMPERATURE = 10000.0


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention and a feed-forward network, each followed by a norm."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        embed_dim = variant.embed_dim
        self.self_attn = MultiHeadAttention(embed_dim, variant.num_self_heads)
        self.norm1 = LayerNorm(embed_dim)
        self.cross_attn = MultiScaleDeformableAttention(variant)
        self.norm2 = LayerNorm(embed_dim)
        self.ffn = MLP(embed_dim, variant.feedforward_dim, embed_dim)
        self.norm3 = LayerNorm(embed_dim)

    def forward(
        self,
        hidden: Tensor,
        position: Tensor,
        memory: Tensor,
        reference_boxes: Tensor,
        shapes: Shapes,
        valid_shapes: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return [B, Q, C] for `hidden` and `position` [B, Q, C]; `reference_boxes` is float32 [B, Q, L, 4]."""
        placed = hidden + position  # the value carries no position
        masks = () if mask is None else (mask,)
        hidden = self.norm1(hidden + self.self_attn(placed, placed, hidden, *masks))
        attended = self.cross_attn(hidden + position, memory, reference_boxes, shapes, valid_shapes)
        hidden = self.norm2(hidden + attended)
        return self.norm3(hidden + self.ffn(hidden))


class DecoderOutput(NamedTuple):
    """What each decoder layer returned and was given."""

    hidden: list[Tensor]  # [B, Q, C] of each layer, before `Decoder.norm`
    # float32 [B, Q, 4] cx cy w h in 0..1 of the valid image, as each layer received them; their gradient reaches the
    # box head of the layer before and stops there, but is not cut of the first, the caller's own.
    references: list[Tensor]


class Decoder(nn.Module):
    """A stack of decoder layers with their box heads; the last box head belongs to the final prediction."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        embed_dim, num_layers = variant.embed_dim, variant.decoder_layers
        self.layers = nn.ModuleList(DecoderLayer(variant) for _ in range(num_layers))
        self.box_heads = nn.ModuleList(BoxHead(embed_dim) for _ in range(num_layers))
        self.norm = LayerNorm(embed_dim)
        self.ref_point_head = MLP(2 * embed_dim, embed_dim, embed_dim)

    def forward(
        self,
        hidden: Tensor,
        references: Tensor,
        memory: Tensor,
        shapes: Shapes,
        valid_shapes: Tensor,
        mask: Tensor | None = None,
    ) -> DecoderOutput:
        """Decode queries `hidden` [B, Q, C] at boxes `references` float32 [B, Q, 4] over `memory` [B, S, C].

        `mask` float32 [Q, Q] is added to the scores of self-attention: -inf where a query must not see another. Only
        training has one. Gradients are cut as DINO cuts them: each layer takes its boxes as they are.
        """
        ratios = valid_ratios(valid_shapes, shapes).repeat(1, 1, 2)  # [B, L, 4]
        outputs = DecoderOutput([], [])
        for i, layer in enumerate(self.layers):
            if i > 0:  # refined by the raw output of the layer before; the final head reads the normed one
                references = torch.sigmoid(self.box_heads[i - 1](hidden) + inverse_sigmoid(_cut(references)))
            boxes = _cut(references)[:, :, None] * ratios[:, None]  # [B, Q, L, 4], in 0..1 of each whole level
            embedding = box_embedding(boxes[:, :, 0], hidden.shape[-1] // 2)
            position = self.ref_point_head(embedding.to(hidden.dtype))
            outputs.references.append(references)
            hidden = layer(hidden, position, memory, boxes, shapes, valid_shapes, mask)
            outputs.hidden.append(hidden)
        return outputs


def _cut(references: Tensor) -> Tensor:
    """Stop the gradient; where there is none, do not put a node into the graph either."""
    return references.detach() if references.requires_grad else references


def box_embedding(boxes: Tensor, channels: int) -> Tensor:
    """Return float32 [B, Q, 4*channels], the sine embedding of `boxes` cx cy w h in the order y, x, w, h."""
    cx, cy, w, h = (boxes * 2 * math.pi).unbind(-1)
    return sine_embedding(torch.stack([cy, cx, w, h], dim=-1), channels, BOX_TEMPERATURE)
