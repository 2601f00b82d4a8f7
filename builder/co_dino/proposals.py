"""First stage: every memory token proposes a box, the best become the decoder's reference boxes.

Source: Deformable DETR (arXiv 2010.04159), appendix A.4; mmdetection `CoDinoTransformer.gen_encoder_output_proposals`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from builder.co_dino.config import Variant
from builder.parts.layers import BoxHead, LayerNorm, gather_tokens
from builder.parts.position import Shapes, token_centres, token_mask

# Side of a proposal on level 0, as a share of the image; it doubles with every level.
BASE_SIDE = 0.05
# A proposal is valid if its centre and size lie strictly inside this range of the valid image.
BORDER = 0.01


class Proposals(NamedTuple):
    """The chosen proposals, best first."""

    boxes: Tensor  # float32 [B, Q, 4], cx cy w h in 0..1 of the valid image; 1 where the proposal is invalid
    logits: Tensor  # [B, Q, num_classes], the first stage's class logits
    indices: Tensor  # int64 [B, Q], the memory tokens they come from


class ScoredTokens(NamedTuple):
    """Every token of the memory as the first stage sees it."""

    tokens: Tensor  # [B, S, C]
    logits: Tensor  # [B, S, num_classes]
    anchors: Tensor  # float32 [B, S, 4], logits of cx cy w h; +inf where the token has no valid box


class ProposalHead(nn.Module):
    """Scores every token of the memory and refines the boxes of the `num_queries` best."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.num_queries, embed_dim = variant.num_queries, variant.embed_dim
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.norm = LayerNorm(embed_dim)
        self.class_head = nn.Linear(embed_dim, variant.num_classes)
        self.box_head = BoxHead(embed_dim)

    def forward(self, memory: Tensor, shapes: Shapes, valid_shapes: Tensor) -> Proposals:
        """Choose proposals from `memory` [B, S, C]; tokens without a valid box score as an empty token does."""
        return self.best(self.score(memory, shapes, valid_shapes))

    def score(self, memory: Tensor, shapes: Shapes, valid_shapes: Tensor) -> ScoredTokens:
        """Score every token of `memory` [B, S, C]."""
        anchors, valid = anchor_logits(shapes, valid_shapes)
        tokens = self.norm(self.proj(memory.masked_fill(~valid.unsqueeze(-1), 0)))  # [B, S, C]
        return ScoredTokens(tokens, self.class_head(tokens), anchors)

    def boxes(self, tokens: Tensor, anchors: Tensor) -> Tensor:
        """Return boxes float32 [B, N, 4] of `tokens` [B, N, C] at `anchors` [B, N, 4], logits of cx cy w h."""
        return torch.sigmoid(self.box_head(tokens) + anchors)

    def best(self, scored: ScoredTokens) -> Proposals:
        """Choose the `num_queries` tokens of the highest score."""
        indices = scored.logits.float().amax(-1).topk(self.num_queries, dim=1).indices
        # Only the chosen tokens need a box.
        boxes = self.boxes(gather_tokens(scored.tokens, indices), gather_tokens(scored.anchors, indices))
        return Proposals(boxes, gather_tokens(scored.logits, indices), indices)


def anchor_logits(shapes: Shapes, valid_shapes: Tensor) -> tuple[Tensor, Tensor]:
    """Return every token's anchor box cx cy w h as logits, float32 [B, S, 4], and whether it is valid, bool [B, S].

    Invalid anchors are +inf, which the sigmoid turns into the box (1, 1, 1, 1) and never into NaN.
    """
    anchors = []
    for level, shape in enumerate(shapes):
        centres = token_centres(shape, valid_shapes[:, level])
        anchors.append(torch.cat([centres, torch.full_like(centres, BASE_SIDE * 2**level)], dim=-1))
    boxes = torch.cat(anchors, dim=1)
    inside = (boxes.amin(-1) > BORDER) & (boxes.amax(-1) < 1 - BORDER)  # `all` has no TensorRT converter
    valid = inside & token_mask(valid_shapes, shapes)
    # Beyond the image the logarithm has no value: take it only of boxes where it has one.
    boxes = torch.where(valid.unsqueeze(-1), boxes, 0.5)
    return torch.log(boxes / (1 - boxes)).masked_fill(~valid.unsqueeze(-1), torch.inf), valid
