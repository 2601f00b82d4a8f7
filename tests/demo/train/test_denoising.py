from __future__ import annotations

import torch

from demo.train.denoising import GROUPS, noisy_objects, separating_mask, shifted
from demo.train.matching import Targets, iou_and_giou


def test_shifted_boxes_stay_in_the_image_and_far_ones_are_worse() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[0.5, 0.5, 0.3, 0.2]]).repeat(1, 500, 1)
    ious = []
    for far in (False, True):
        moved = shifted(boxes, torch.tensor(far))
        assert (moved[..., :2] - moved[..., 2:] / 2 >= -1e-3).all()
        assert (moved[..., :2] + moved[..., 2:] / 2 <= 1 + 1e-3).all()
        ious.append(float(iou_and_giou(boxes, moved)[0].mean()))
    assert ious[0] > ious[1] + 0.2


def test_denoising_queries_are_copies_of_the_objects() -> None:
    torch.manual_seed(0)
    M = 3
    targets = Targets(torch.rand(2, M, 4), torch.randint(8, (2, M)), torch.tensor([[True] * 3, [True, False, False]]))
    noisy = noisy_objects(targets, 8)
    count = 2 * GROUPS * M
    assert noisy.labels.shape == (2, count)
    assert noisy.boxes.shape == (2, count, 4)
    assert noisy.group == 2 * M
    assert noisy.assigned[0, : 2 * M].tolist() == [0, 1, 2, -1, -1, -1]
    assert noisy.counted[1, :M].tolist() == [True, False, False]
    right = (noisy.labels == targets.labels.repeat(1, 2 * GROUPS)).float().mean()
    assert 0.5 < right < 1


def test_the_mask_separates_groups() -> None:
    mask = separating_mask([1, 2], torch.device("cpu"))
    assert (mask == 0).tolist() == [[True, False, False], [False, True, True], [False, True, True]]
    assert mask.exp().unique().tolist() == [0, 1]
