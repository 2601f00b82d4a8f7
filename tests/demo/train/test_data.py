from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from demo.shapes.draw import generate
from demo.train.data import ShapesDataset, batches
from tests.demo.train.tiny import CO_DINO, RTDETRV2


def test_training_images_are_padded_and_their_boxes_relative_to_the_image() -> None:
    data = ShapesDataset(9, CO_DINO)
    portraits = 0
    for index in range(12):
        padded, (valid_h, valid_w), boxes, labels = data[index]
        sample = generate(9, index)
        height, width = sample.image.shape[:2]
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        assert padded.shape == (96, 144, 3)
        assert not padded[valid_h:].any()
        assert not padded[:, valid_w:].any()
        assert np.allclose(corners * [width, height, width, height], sample.boxes, atol=1e-3)
        assert labels.tolist() == sample.labels.tolist()
        portraits += height > width
    assert portraits


def test_a_variant_has_images_by_its_own_rule() -> None:
    """RT-DETRv2's images are stretched with antialiasing; boxes relative to the image are the same either way."""
    fitted, stretched = ShapesDataset(9, CO_DINO), ShapesDataset(9, RTDETRV2)
    _, sizes, targets = next(batches(RTDETRV2, 9, 4, range(1)))
    for index in range(4):
        image, valid, boxes, _ = stretched[index]
        assert valid == (96, 160)
        assert sizes[index].tolist() == [96, 160]
        assert np.array_equal(boxes, fitted[index][2])
        assert np.allclose(targets.boxes[index, : len(boxes)], boxes)
        assert image[:, -8:].any()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_has_the_same_images_wherever_the_run_began(workers: int) -> None:
    variant = replace(CO_DINO, input_size=(32, 48))
    whole = list(batches(variant, 3, 2, range(4), workers=workers))
    later = list(batches(variant, 3, 2, range(2, 4)))
    assert len(whole) == 4
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[2:], later, strict=True))
    assert not torch.equal(whole[0][0], whole[2][0])


def test_few_images_are_repeated() -> None:
    variant = replace(CO_DINO, input_size=(32, 48))
    first, second = batches(variant, 3, 2, range(2), distinct_images=2)
    assert torch.equal(first[0], second[0])
