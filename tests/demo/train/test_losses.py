from __future__ import annotations

import math

import pytest
import torch

from demo.train.losses import detection_losses
from demo.train.matching import Targets


def one_object() -> Targets:
    return Targets(torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]), torch.tensor([[1]]), torch.tensor([[True]]))


def test_losses_of_hand_computed_predictions() -> None:
    logits = torch.zeros(1, 2, 2)  # scores of 1/2
    boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.2], [0.1, 0.1, 0.1, 0.1]]])  # IoU 1/2, and far away
    losses = detection_losses(logits, boxes, torch.tensor([[0, -1]]), one_object())
    log2 = math.log(2)  # cross entropy at a score of 1/2, whatever the target
    assert float(losses["class"]) == pytest.approx(log2 + 3 * 0.5**1.5 * log2)
    assert float(losses["l1"]) == pytest.approx(5 * 0.2)
    assert float(losses["giou"]) == pytest.approx(2 * 0.5)


def test_predictions_that_do_not_count_cost_nothing() -> None:
    logits, boxes = torch.randn(1, 2, 2), torch.rand(1, 2, 4)
    losses = detection_losses(logits, boxes, torch.tensor([[0, -1]]), one_object(), torch.zeros(1, 2, dtype=torch.bool))
    assert all(float(loss) == 0 for loss in losses.values())
