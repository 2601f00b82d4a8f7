"""Denoising queries: noisy copies of the objects that the decoder learns to put right. Source: DINO, section 3.3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from builder.parts.boxes import cxcywh_to_xyxy
from demo.train.matching import Targets

# Copies of every object, share of wrong labels, largest corner shift in half sizes.
GROUPS, WRONG_LABELS, CORNER_SHIFT = 3, 0.25, 0.5


class NoisyObjects(NamedTuple):
    """`GROUPS` groups, each of a slightly shifted copy of every object, which shall find it, and of one shifted
    further, which shall be rejected.
    """

    labels: Tensor  # int64 [B, N]
    boxes: Tensor  # float32 [B, N, 4], cx cy w h
    assigned: Tensor  # int64 [B, N], the object to find, -1 for none
    counted: Tensor  # bool [B, N], false on copies of padding
    group: int  # size of each group


def noisy_objects(targets: Targets, num_classes: int) -> NoisyObjects:
    """Return noisy copies of the objects."""
    B, M = targets.labels.shape
    repeats = 2 * GROUPS
    labels = targets.labels.repeat(1, repeats)
    wrong = torch.rand_like(labels, dtype=torch.float32) < WRONG_LABELS
    labels = torch.where(wrong, torch.randint_like(labels, num_classes), labels)
    far = torch.tensor([False, True], device=labels.device).repeat_interleave(M).repeat(GROUPS)
    boxes = torch.where(targets.present[..., None], targets.boxes, 0.5).repeat(1, repeats, 1)
    objects = torch.arange(M, device=labels.device).repeat(repeats)
    assigned = torch.where(far, -1, objects).expand(B, -1)
    return NoisyObjects(labels, shifted(boxes, far[:, None]), assigned, targets.present.repeat(1, repeats), 2 * M)


def shifted(boxes: Tensor, far: Tensor) -> Tensor:
    """Move both corners of `boxes` cx cy w h [B, N, 4] by up to `CORNER_SHIFT` half sizes.

    Boxes that are `far` (bool, broadcast to [B, N, 4]) move by once to twice as much.
    """
    half = boxes[..., 2:].repeat(1, 1, 2) / 2
    signs = torch.randint_like(boxes, 2) * 2 - 1
    corners = cxcywh_to_xyxy(boxes) + (torch.rand_like(boxes) + far.float()) * signs * CORNER_SHIFT * half
    low, high = torch.minimum(corners[..., :2], corners[..., 2:]), torch.maximum(corners[..., :2], corners[..., 2:])
    low, high = low.clamp(0, 1), high.clamp(0, 1)
    return torch.cat([(low + high) / 2, (high - low).clamp(min=1e-3)], dim=-1)


def separating_mask(groups: Sequence[int], device: torch.device) -> Tensor:
    """Return float32 [Q, Q]: 0 among the queries of one of `groups` (sizes that sum to Q), -inf between groups."""
    member = torch.repeat_interleave(torch.tensor(groups)).to(device)
    return torch.zeros(len(member), len(member), device=device).masked_fill(member[:, None] != member, -torch.inf)
