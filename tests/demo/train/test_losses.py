from __future__ import annotations

import math

import pytest
import torch

from builder.checkpoint import random_detector
from builder.co_dino.config import SwinConfig, Variant
from demo.shapes import CLASS_NAMES
from demo.train.losses import DENOISING_GROUPS, TrainingModel, decode, detection_losses, propose, shifted
from demo.train.matching import Targets, iou_and_giou

TINY = Variant(
    "tiny",
    SwinConfig(16, (1, 1, 1, 1), (1, 2, 4, 8), window_size=7),
    num_classes=8,
    num_queries=40,
    embed_dim=32,
    num_heads=1,
    num_self_heads=1,
    feedforward_dim=32,
    encoder_layers=1,
    decoder_layers=2,
    input_size=(64, 96),
    class_names=CLASS_NAMES,
)


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
    model = TrainingModel(random_detector(TINY))
    M = 3
    targets = Targets(torch.rand(2, M, 4), torch.randint(8, (2, M)), torch.tensor([[True] * 3, [True, False, False]]))
    content, boxes, assigned, counted = model._denoising_queries(targets)
    count = 2 * DENOISING_GROUPS * M
    assert content.shape == (2, count, TINY.embed_dim)
    assert boxes.shape == (2, count, 4)
    assert assigned[0, : 2 * M].tolist() == [0, 1, 2, -1, -1, -1]
    assert counted[1, :M].tolist() == [True, False, False]


def test_training_decodes_as_the_detector_does() -> None:
    """The last layer's prediction in training is the detector's own output, and denoising does not change it."""
    detector = random_detector(TINY)
    pixels, sizes = torch.randn(2, 3, 64, 96), torch.tensor([[64, 96], [50, 70]])
    memory = detector.encode(pixels, sizes)
    expected_logits, expected_boxes = detector.network(pixels, sizes)
    references = detector.proposals(*memory).boxes
    queries = detector.query_embed.weight.expand(2, -1, -1)
    noise = torch.rand(2, 6, TINY.embed_dim), torch.rand(2, 6, 4)
    hidden, boxes = torch.cat([queries, noise[0]], 1), torch.cat([references, noise[1]], 1)
    logits, boxes = decode(detector, memory, hidden, boxes, [40, 3, 3])
    assert torch.allclose(logits[-1, :, :40], expected_logits, atol=1e-5)
    assert torch.allclose(boxes[-1, :, :40], expected_boxes, atol=1e-5)


def test_training_proposes_as_the_detector_does() -> None:
    detector = random_detector(TINY)
    memory = detector.encode(torch.randn(1, 3, 64, 96), torch.tensor([[64, 80]]))
    logits, boxes, _ = propose(detector, memory)
    best = logits.amax(-1).topk(40, dim=1).indices
    assert torch.allclose(boxes[0, best[0]], detector.proposals(*memory).boxes[0], atol=1e-6)


def test_every_weight_of_the_detector_is_trained() -> None:
    torch.manual_seed(0)
    model = TrainingModel(random_detector(TINY).requires_grad_(True).train())
    targets = Targets(torch.tensor([[[0.5, 0.5, 0.3, 0.3]]]), torch.tensor([[2]]), torch.tensor([[True]]))
    losses = model(torch.randn(1, 3, 64, 96), torch.tensor([[64, 96]]), targets)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
