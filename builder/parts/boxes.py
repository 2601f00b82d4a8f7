"""Box arithmetic of the DETR family; every function works in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor

# References are kept this far from 0 and 1 when they return to logit space (mmdetection `inverse_sigmoid`).
SIGMOID_EPS = 1e-3


def inverse_sigmoid(x: Tensor, eps: float = SIGMOID_EPS) -> Tensor:
    """Return the logit of `x` in 0..1, limited to ±log(1 / eps)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Return boxes [..., 4] given as centre and size as their two corners x1 y1 x2 y2."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def top_candidates(logits: Tensor, boxes: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the `count` best (query, class) pairs; one query may appear with several classes.

    Args:
        logits: [B, Q, classes], one sigmoid each.
        boxes: float32 [B, Q, 4], cx cy w h.
        count: K, at most Q * classes.

    Returns:
        Boxes [B, K, 4] x1 y1 x2 y2, scores float32 [B, K], best first, and labels int32 [B, K].
    """
    classes = logits.shape[-1]
    scores, indices = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid().flatten(1).topk(count, 1)
    queries = (indices // classes).unsqueeze(-1).expand(-1, -1, 4)
    return cxcywh_to_xyxy(boxes.gather(1, queries)), scores, (indices % classes).int()
