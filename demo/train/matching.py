"""Which predictions answer for which objects: one to one for the decoder, one to many for the first stage."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from builder.parts.boxes import cxcywh_to_xyxy

# Costs of Hungarian matching (DINO, arXiv 2203.03605, appendix D).
CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
# Task alignment = score^alpha * IoU^beta, and tokens an object takes (TOOD, arXiv 2108.07755, section 3.2).
ALIGN_ALPHA, ALIGN_BETA, TOKENS_PER_OBJECT = 0.5, 4.0, 8


class Targets(NamedTuple):
    """The objects of a batch, padded to the same number M for every image."""

    boxes: Tensor  # float32 [B, M, 4], cx cy w h in 0..1 of the valid image
    labels: Tensor  # int64 [B, M]
    present: Tensor  # bool [B, M], false on padding


def iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU (arXiv 1902.09630) of boxes cx cy w h [..., 4], broadcast against each other."""
    a, b = cxcywh_to_xyxy(a), cxcywh_to_xyxy(b)
    overlap = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - overlap
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    iou = overlap / union.clamp(min=1e-9)
    return iou, iou - (hull - union) / hull.clamp(min=1e-9)


def _area(low: Tensor, high: Tensor) -> Tensor:
    width, height = (high - low).clamp(min=0).unbind(-1)
    return width * height  # the backward of prod() is far slower


@torch.no_grad()
def hungarian(logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
    """Match queries and objects one to one at the least total cost.

    Args:
        logits: [N, B, Q, num_classes] of N decoder layers.
        boxes: float32 [N, B, Q, 4], cx cy w h.
        targets: the objects of the B images.

    Returns:
        int64 [N, B, Q]: the object each query answers for, -1 for none.
    """
    costs = _matching_cost(logits.float(), boxes, targets).cpu().numpy()  # [N, B, Q, M]
    counts = targets.present.sum(1).tolist()
    matched = torch.full(logits.shape[:3], -1)
    for layer, layer_costs in enumerate(costs):
        for image, count in enumerate(counts):
            queries, objects = linear_sum_assignment(layer_costs[image, :, :count])
            matched[layer, image, torch.from_numpy(queries)] = torch.from_numpy(objects)
    return matched.to(logits.device)


def _matching_cost(logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
    index = targets.labels[None, :, None].expand(len(logits), -1, logits.shape[2], -1)  # [N, B, Q, M]
    logit = logits.gather(3, index)
    score = logit.sigmoid()
    hit = -FOCAL_ALPHA * (1 - score) ** FOCAL_GAMMA * F.logsigmoid(logit)
    miss = -(1 - FOCAL_ALPHA) * score**FOCAL_GAMMA * F.logsigmoid(-logit)
    pairs = boxes.unsqueeze(3), targets.boxes[None, :, None]
    distance = (pairs[0] - pairs[1]).abs().sum(-1)
    return CLASS_COST * (hit - miss) + L1_COST * distance - GIOU_COST * iou_and_giou(*pairs)[1]


@torch.no_grad()
def task_aligned(logits: Tensor, boxes: Tensor, centres: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Give each object the tokens inside it whose class and box fit it best.

    Args:
        logits: [B, S, num_classes] of every token.
        boxes: float32 [B, S, 4], cx cy w h proposed by every token.
        centres: float32 [B or 1, S, 2], where the tokens are, (x, y) in 0..1 of the valid image.
        targets: the objects.

    Returns:
        int64 [B, S]: the object each token answers for, -1 for none; and float32 [B, S]: the score it should have,
        the object's best IoU scaled by how the token's alignment compares to the best one's.
    """
    tokens = min(TOKENS_PER_OBJECT, logits.shape[1])
    iou = iou_and_giou(targets.boxes[:, :, None], boxes[:, None])[0]  # [B, M, S]
    index = targets.labels[:, :, None].expand(-1, -1, logits.shape[1])
    score = logits.float().sigmoid().transpose(1, 2).gather(1, index)
    inside = _contains(targets.boxes, centres) & targets.present[:, :, None]
    alignment = score**ALIGN_ALPHA * (iou + 1e-6) ** ALIGN_BETA * inside
    best = torch.zeros_like(inside).scatter_(2, alignment.topk(tokens, dim=2).indices, True)
    chosen = best & (alignment > 0)
    owner = (iou * chosen).argmax(1)  # a token in two objects answers for the one it fits better
    chosen &= F.one_hot(owner, len(targets.boxes[0])).transpose(1, 2).bool()
    alignment, iou = alignment * chosen, iou * chosen
    quality = alignment * iou.amax(2, keepdim=True) / alignment.amax(2, keepdim=True).clamp(min=1e-12)
    return torch.where(chosen.any(1), owner, -1), quality.amax(1)


def _contains(boxes: Tensor, points: Tensor) -> Tensor:
    """Return bool [B, M, S]: whether each of `points` [B, S, 2] lies inside each of `boxes` [B, M, 4]."""
    corners = cxcywh_to_xyxy(boxes)[:, :, None]
    return ((points[:, None] > corners[..., :2]) & (points[:, None] < corners[..., 2:])).all(-1)
