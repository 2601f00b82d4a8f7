"""Multi-scale deformable attention layer. Source: Deformable DETR (arXiv 2010.04159), section 4.1."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from builder.co_dino.config import Variant
from builder.operators.ms_deform_attn import ms_deform_attn
from builder.parts.position import Shapes


class Projected(NamedTuple):
    """What the products at the beginning of a layer make."""

    value: Tensor  # [B, S, C], of the memory
    offsets: Tensor  # [B, Q, 2*samples], of the queries
    logits: Tensor  # [B, Q, samples]


class MultiScaleDeformableAttention(nn.Module):
    """Each query samples a few points on every level, around its reference point, for every head."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.samples = (variant.num_heads, variant.num_levels, variant.num_points)
        samples, embed_dim = math.prod(self.samples), variant.embed_dim
        self.sampling_offsets = nn.Linear(embed_dim, 2 * samples)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self, query: Tensor, memory: Tensor, reference_points: Tensor, shapes: Shapes, valid_shapes: Tensor
    ) -> Tensor:
        """Return [B, Q, C] for `query` [B, Q, C] over `memory` [B, S, C].

        `reference_points` float32 [B, Q, L, 2 or 4] are in 0..1 of each whole level; memory tokens outside
        `valid_shapes` int32 [B, L, 2] read as zero.
        """
        projected = Projected(self.value_proj(memory), self.sampling_offsets(query), self.attention_weights(query))
        return self.output_proj(attend(projected, self.samples, reference_points, shapes, valid_shapes))


def attend(
    projected: Projected,
    samples: tuple[int, int, int],
    reference_points: Tensor,
    shapes: Shapes,
    valid_shapes: Tensor,
) -> Tensor:
    """Return [B, Q, C] for `samples` (heads, levels, points), before the output projection; the rest is as there."""
    value = projected.value.unflatten(-1, (samples[0], -1))  # [B, S, heads, dim]
    offsets = projected.offsets.unflatten(-1, (*samples, 2))
    logits = projected.logits.unflatten(-1, samples)
    sizes = [side for shape in shapes for side in shape]
    return ms_deform_attn(value, reference_points, offsets, logits, sizes, valid_shapes)
