"""Query selection: every memory token scores and proposes a box, the best become the decoder's queries.

Source: RT-DETR (arXiv 2304.08069), section 4.3; upstream `RTDETRTransformerv2._get_decoder_input`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from builder.parts.layers import BoxHead, LayerNorm, gather_tokens
from builder.parts.position import Shapes
from builder.rtdetrv2.config import RTDETRv2Config, Selection

# Side of an anchor on level 0, as a share of the image; it doubles with every level.
BASE_SIDE = 0.05
# An anchor is valid if its centre and size lie strictly inside this range of the image.
BORDER = 0.01
# Logit of invalid anchors: far above any head's deltas, its sigmoid is exactly 1 as that of upstream's infinity, and it
# is a number in half precision too.
INVALID_LOGIT = 1e4


class Proposals(NamedTuple):
    """The chosen tokens, best first."""

    tokens: Tensor  # [B, Q, C], what the queries contain unless they are learned
    boxes: Tensor  # float32 [B, Q, 4], cx cy w h in 0..1 of the image; 1 where the anchor is invalid
    logits: Tensor  # [B, Q, num_classes], or [B, Q, 1] of a class-agnostic selection
    indices: Tensor  # int64 [B, Q], the memory tokens they come from


class ScoredTokens(NamedTuple):
    """Every token of the memory as the query selection sees it."""

    tokens: Tensor  # [B, S, C]
    logits: Tensor  # [B, S, num_classes], or [B, S, 1] of a class-agnostic selection
    anchors: Tensor  # float32 [1, S, 4], logits of cx cy w h; large where the anchor is invalid


class ProposalHead(nn.Module):
    """Scores every token of the memory and gives boxes to the `num_queries` best."""

    def __init__(self, variant: RTDETRv2Config) -> None:
        super().__init__()
        self.num_queries, self.selection, embed_dim = variant.num_queries, variant.selection, variant.embed_dim
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.norm = LayerNorm(embed_dim)
        self.class_head = nn.Linear(embed_dim, 1 if variant.selection == "agnostic" else variant.num_classes)
        self.box_head = BoxHead(embed_dim)

    def forward(self, memory: Tensor, shapes: Shapes) -> Proposals:
        """Choose from `memory` [B, S, C]; a token without a valid anchor scores as an empty token does."""
        return self.best(self.score(memory, shapes))

    def score(self, memory: Tensor, shapes: Shapes) -> ScoredTokens:
        """Score every token of `memory` [B, S, C]."""
        dtype = torch.promote_types(memory.dtype, torch.float32)
        anchors, valid = anchor_logits(shapes, memory.device, dtype)
        tokens = self.norm(self.proj(memory.masked_fill(~valid[None, :, None], 0)))  # [B, S, C]
        return ScoredTokens(tokens, self.class_head(tokens), anchors)

    def boxes(self, tokens: Tensor, anchors: Tensor) -> Tensor:
        """Return boxes float32 [B, N, 4] of `tokens` [B, N, C] at `anchors` [B or 1, N, 4], logits of cx cy w h."""
        return torch.sigmoid(self.box_head(tokens) + anchors)

    def best(self, scored: ScoredTokens) -> Proposals:
        """Choose the tokens of the highest score."""
        logits = scored.logits.to(torch.promote_types(scored.logits.dtype, torch.float32))
        indices = best_tokens(logits, self.num_queries, self.selection)
        chosen = gather_tokens(scored.tokens, indices)  # only the chosen tokens need a box
        boxes = self.boxes(chosen, scored.anchors[0, indices])
        return Proposals(chosen, boxes, gather_tokens(scored.logits, indices), indices)


def best_tokens(logits: Tensor, count: int, selection: Selection) -> Tensor:
    """Return int64 [B, count], the tokens of `logits` [B, S, classes] that are best by a selection's rule."""
    if selection == "one2many":  # a token once for each of its classes that is among the best
        pairs = logits.flatten(1).topk(count, dim=1).indices
        return torch.div(pairs, logits.shape[-1], rounding_mode="floor")
    return logits.amax(-1).topk(count, dim=1).indices


def anchor_logits(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return every token's anchor cx cy w h as logits of `dtype` [1, S, 4], and whether it is valid, bool [S]."""
    anchors = []
    for level, (h, w) in enumerate(shapes):
        y = ((torch.arange(h, device=device, dtype=dtype) + 0.5) / h)[:, None].expand(h, w)
        x = ((torch.arange(w, device=device, dtype=dtype) + 0.5) / w)[None].expand(h, w)
        side = torch.full_like(x, BASE_SIDE * 2**level)
        anchors.append(torch.stack([x, y, side, side], dim=-1).flatten(0, 1))
    boxes = torch.cat(anchors)  # [S, 4]
    valid = (boxes.amin(-1) > BORDER) & (boxes.amax(-1) < 1 - BORDER)  # `all` has no TensorRT converter
    boxes = torch.where(valid[:, None], boxes, 0.5)
    logits = torch.log(boxes / (1 - boxes)).masked_fill(~valid[:, None], INVALID_LOGIT)
    return logits.unsqueeze(0), valid
