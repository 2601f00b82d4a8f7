"""The detection losses of matched predictions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from demo.train.matching import Targets, iou_and_giou

# Weights of the losses (RT-DETR, arXiv 2304.08069, appendix A).
CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 1.0, 5.0, 2.0
# Matchability-aware classification loss (DEIM, arXiv 2412.04234): exponent of the IoU target and of the negatives.
MATCHABILITY_GAMMA = 1.5


def detection_losses(
    logits: Tensor,
    boxes: Tensor,
    assigned: Tensor,
    targets: Targets,
    counted: Tensor | None = None,
    copies: int = 1,
    quality: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the class, L1 and GIoU losses per object, summed over layers.

    Args:
        logits: [..., B, Q, num_classes].
        boxes: float32 [..., B, Q, 4], cx cy w h.
        assigned: int64 [..., B, Q], the object each prediction answers for, -1 for none.
        targets: the objects.
        counted: bool [..., B, Q], false on predictions without any loss.
        copies: how many predictions answer for each object.
        quality: float32 [..., B, Q], the score an assigned prediction should have and the weight of its box; by
            default its IoU, and 1.
    """
    positive = assigned >= 0 if counted is None else (assigned >= 0) & counted
    index = assigned.clamp(min=0)
    wanted = targets.boxes.expand(*assigned.shape[:-2], -1, -1, -1).gather(-2, index.unsqueeze(-1).expand_as(boxes))
    labels = targets.labels.expand(*assigned.shape[:-2], -1, -1).gather(-1, index)
    iou, giou = iou_and_giou(boxes, wanted)
    weight = positive.float() if quality is None else quality * positive
    total = (targets.present.sum() * copies if quality is None else weight.sum()).clamp(min=1)
    score = iou.detach().clamp(min=0) if quality is None else quality
    class_loss = _class_loss(logits, labels, score, positive)
    if counted is not None:
        class_loss = class_loss * counted
    return {
        "class": CLASS_WEIGHT * class_loss.sum() / total,
        "l1": L1_WEIGHT * ((boxes - wanted).abs().sum(-1) * weight).sum() / total,
        "giou": GIOU_WEIGHT * ((1 - giou) * weight).sum() / total,
    }


def _class_loss(logits: Tensor, labels: Tensor, score: Tensor, positive: Tensor) -> Tensor:
    """Return [..., Q]: cross entropy towards the score at the right class and towards 0, focally, elsewhere."""
    logits = logits.float()
    hit = F.one_hot(labels, logits.shape[-1]) * positive.unsqueeze(-1)
    wanted = hit * score.unsqueeze(-1) ** MATCHABILITY_GAMMA
    weight = hit + (1 - hit) * logits.detach().sigmoid() ** MATCHABILITY_GAMMA
    return (F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * weight).sum(-1)
