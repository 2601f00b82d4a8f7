"""How far boxes lie on each other, for the comparison of detections."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the intersection over union [N, M] of boxes `a` [N, 4] and `b` [M, 4], x1 y1 x2 y2; of empty boxes 0."""
    a, b = a[:, None], b[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = sides.clip(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(-1) for boxes in (a, b)]
    return intersection / np.maximum(areas[0] + areas[1] - intersection, np.finfo(np.float32).tiny)
