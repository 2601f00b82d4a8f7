"""Box arithmetic of the DETR family; every function works in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor

# References are kept this far from 0 and 1 when they return to logit space (mmdetection `inverse_sigmoid`).
SIGMOID_EPS = 1e-3


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Return the logit of `x` in 0..1, limited to ±log(1 / 1e-3)."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=SIGMOID_EPS) / (1 - x).clamp(min=SIGMOID_EPS))


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Return boxes [..., 4] given as centre and size as their two corners x1 y1 x2 y2."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)
