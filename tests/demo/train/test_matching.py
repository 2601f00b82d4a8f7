from __future__ import annotations

import itertools

import torch

from demo.train.matching import Targets, _matching_cost, hungarian, iou_and_giou, task_aligned


def targets() -> Targets:
    boxes = torch.tensor([[[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.4], [0.5, 0.5, 0.1, 0.1]]] * 2)
    labels = torch.tensor([[0, 2, 1]] * 2)
    return Targets(boxes, labels, torch.tensor([[True, True, True], [True, True, False]]))


def test_iou_and_giou_of_hand_computed_boxes() -> None:
    a = torch.tensor([0.5, 0.5, 1.0, 1.0])
    overlapping, apart = torch.tensor([1.0, 0.5, 1.0, 1.0]), torch.tensor([2.5, 0.5, 1.0, 1.0])
    iou, giou = iou_and_giou(a, torch.stack([a, overlapping, apart]))
    assert torch.allclose(iou, torch.tensor([1.0, 1 / 3, 0.0]))
    assert torch.allclose(giou, torch.tensor([1.0, 1 / 3, -1 / 3]))  # hull of the last: 3, of which 1 is empty


def test_hungarian_is_the_best_of_all_assignments() -> None:
    torch.manual_seed(0)
    logits, boxes = torch.randn(1, 2, 5, 4), torch.rand(1, 2, 5, 4)
    matched = hungarian(logits, boxes, targets())
    costs = _matching_cost(logits, boxes, targets())[0]
    for image, count in enumerate((3, 2)):
        best = min(
            itertools.permutations(range(5), count),
            key=lambda q: sum(float(costs[image, q[k], k]) for k in range(count)),
        )
        expected = [best.index(query) if query in best else -1 for query in range(5)]
        assert matched[0, image].tolist() == expected


def test_an_image_without_objects_matches_nothing() -> None:
    empty = Targets(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool))
    assert (hungarian(torch.randn(2, 1, 5, 4), torch.rand(2, 1, 5, 4), empty) == -1).all()
    owner, quality = task_aligned(torch.randn(1, 9, 4), torch.rand(1, 9, 4), torch.rand(1, 9, 2), empty)
    assert (owner == -1).all()
    assert not quality.any()


def test_tokens_outside_an_object_never_answer_for_it() -> None:
    torch.manual_seed(1)
    wanted = targets()
    centres = torch.rand(2, 60, 2)
    owner, quality = task_aligned(torch.randn(2, 60, 4), torch.rand(2, 60, 4), centres, wanted)
    assert (owner >= 0).any()
    assert (owner[1] != 2).all()  # not present
    for image, token in torch.nonzero(owner >= 0).tolist():
        box = wanted.boxes[image, owner[image, token]]
        assert ((centres[image, token] - box[:2]).abs() < box[2:] / 2).all()
    assert not quality[owner < 0].any()


def test_the_best_token_of_an_object_is_given_its_iou() -> None:
    wanted = targets()
    centres = wanted.boxes[:, :1, :2].repeat(1, 2, 1)
    boxes = torch.stack([wanted.boxes[:, 0], wanted.boxes[:, 0] * torch.tensor([1, 1, 1, 0.5])], dim=1)
    owner, quality = task_aligned(torch.zeros(2, 2, 4), boxes, centres, wanted)
    assert (owner == 0).all()
    assert torch.allclose(quality[:, 0], torch.ones(2))
    assert torch.allclose(quality[:, 1], torch.full((2,), 0.5**4), atol=1e-4)  # alignment falls as IoU to the fourth
