"""Deformable attention of RT-DETRv2: points a level of their own, offsets in units of the box, bilinear or discrete.

Source: RT-DETRv2 (arXiv 2407.17140), section 3.1; upstream `MSDeformableAttention` and
`deformable_attention_core_func_v2`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.operators.ms_deform_attn import ms_deform_attn
from builder.parts.position import Shapes
from builder.rtdetrv2.config import RTDETRv2Config

# Logit of points that fill up a level: no weight after the softmax, and a number in half precision.
NO_WEIGHT = -3e4


class DeformableAttention(nn.Module):
    """Each query samples a few points on every level, around its box, for every head."""

    def __init__(self, variant: RTDETRv2Config) -> None:
        super().__init__()
        self.num_heads, self.num_points, self.sampling = variant.num_heads, variant.num_points, variant.sampling
        samples, embed_dim = variant.num_heads * sum(variant.num_points), variant.embed_dim
        self.sampling_offsets = nn.Linear(embed_dim, 2 * samples)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, query: Tensor, memory: Tensor, boxes: Tensor, shapes: Shapes) -> Tensor:
        """Return [B, Q, C] for `query` [B, Q, C] over `memory` [B, S, C]; `boxes` are float32 [B, Q, 4], cx cy w h."""
        value = self.value_proj(memory).unflatten(-1, (self.num_heads, -1))  # [B, S, heads, dim]
        offsets = self.sampling_offsets(query).unflatten(-1, (self.num_heads, -1, 2))  # [B, Q, heads, points, 2]
        logits = self.attention_weights(query).unflatten(-1, (self.num_heads, -1))  # [B, Q, heads, points]
        if self.sampling == "discrete":
            return self.output_proj(sample_discretely(value, boxes, offsets, logits, shapes, self.num_points))
        offsets, logits = even_points(offsets, logits, self.num_points)
        sizes = [side for shape in shapes for side in shape]
        references = boxes.unsqueeze(2).repeat(1, 1, len(shapes), 1)  # [B, Q, L, 4]
        return self.output_proj(ms_deform_attn(value, references, offsets, logits, sizes))


def even_points(offsets: Tensor, logits: Tensor, num_points: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return offsets [B, Q, heads, L, P, 2] and logits [B, Q, heads, L, P] with the most points on every level.

    `offsets` [B, Q, heads, sum(num_points), 2] and `logits` [B, Q, heads, sum(num_points)] are in the order of levels.
    Points that a level lacks get no weight. The operator divides offsets by the points of a level, so they are scaled.
    """
    most = max(num_points)
    if set(num_points) == {most}:
        levels = (len(num_points), most)
        return offsets.unflatten(3, levels), logits.unflatten(3, levels)
    scaled = [
        F.pad(part * (most / count), (0, 0, 0, most - count))
        for part, count in zip(offsets.split(num_points, 3), num_points, strict=True)
    ]
    filled = [
        F.pad(part, (0, most - count), value=NO_WEIGHT)
        for part, count in zip(logits.split(num_points, 3), num_points, strict=True)
    ]
    return torch.stack(scaled, dim=3), torch.stack(filled, dim=3)


def sample_discretely(
    value: Tensor, boxes: Tensor, offsets: Tensor, logits: Tensor, shapes: Shapes, num_points: tuple[int, ...]
) -> Tensor:
    """Return [B, Q, heads*dim], the weighted tokens of `value` [B, S, heads, dim] at the sampled points.

    A point reads the token at its location times the level's size, plus a half, without the fraction. Upstream limits
    rows and columns alike by the height: columns beyond it are never read, and a map higher than wide is an error. Here
    its columns are limited by the width; `levels.check_limits` refuses such sizes.
    """
    B, Q = boxes.shape[:2]
    centre, half_size = boxes[:, :, None, None, :2], boxes[:, :, None, None, 2:] * 0.5
    tokens, start = [], 0
    for (h, w), count, part in zip(shapes, num_points, offsets.split(num_points, 3), strict=True):
        locations = centre + part.to(boxes.dtype) * (1 / count) * half_size  # [B, Q, heads, count, 2]
        x, y = locations.unbind(-1)
        # Limited before the fraction is cut: the same number, and none is too large for an integer.
        column = (x * w + 0.5).clamp(0, min(h, w) - 1).long()
        row = (y * h + 0.5).clamp(0, h - 1).long()
        tokens.append(start + row * w + column)
        start += h * w
    heads, dim, points = value.shape[2], value.shape[3], sum(num_points)
    index = torch.cat(tokens, dim=3).transpose(1, 2).reshape(B, heads, Q * points, 1)
    samples = value.transpose(1, 2).gather(2, index.expand(-1, -1, -1, dim)).unflatten(2, (Q, points))
    weights = logits.to(boxes.dtype).softmax(-1).transpose(1, 2).unsqueeze(-1)  # [B, heads, Q, points, 1]
    out = (samples.to(boxes.dtype) * weights).sum(3)  # [B, heads, Q, dim]
    return out.transpose(1, 2).flatten(2).to(value.dtype)
