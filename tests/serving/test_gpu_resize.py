"""Pixels resized on tensors are those of OpenCV and of Pillow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serving import gpu_resize, preprocess
from serving.rules import Pixels

RULES = {
    "as mmdetection": Pixels(),
    "as RT-DETR": Pixels(resize="stretch"),
    "stretched as Pillow": Pixels(resize="stretch", antialias=True),
    "as DETR": Pixels(antialias=True, shortest_edge=60, longest_edge=100),
}
SIZES = [
    (1, 1), (1, 99), (99, 1), (48, 64), (96, 128), (24, 32), (47, 64), (48, 65), (95, 127), (97, 129), (192, 256),
    (500, 700), (3, 700), (700, 3), (131, 77),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", SIZES)
def test_the_same_pixels_as_on_the_cpu(size: tuple[int, int], rule: str) -> None:
    image = np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), dtype=np.uint8)
    for engine in ((48, 64), (64, 48), (100, 31)):
        expected, valid = preprocess.resize_and_pad(image, *engine, RULES[rule])
        actual, filled = gpu_resize.resize_and_pad(torch.from_numpy(image), *engine, RULES[rule])
        assert filled == valid
        np.testing.assert_array_equal(actual.numpy(), expected)


@pytest.mark.parametrize("rule", RULES)
def test_extremes_do_not_overflow(rule: str) -> None:
    for value in (0, 255):
        image = torch.full((517, 611, 3), value, dtype=torch.uint8)
        actual, (h, w) = gpu_resize.resize_and_pad(image, 48, 64, RULES[rule])
        assert (actual[:h, :w] == value).all()
        assert not actual[h:].any()
        assert not actual[:, w:].any()
