"""Sampling against loops over points, written from the formulas alone."""

import pytest
import torch

from builder.operators.ms_deform_attn import ms_deform_attn
from builder.rtdetrv2.deformable import even_points, sample_discretely

SHAPES = [(6, 8), (3, 4)]
HEADS, DIM = 2, 4


def inputs(num_points, seed=0):
    torch.manual_seed(seed)
    tokens, points = sum(h * w for h, w in SHAPES), sum(num_points)
    value = torch.randn(2, tokens, HEADS, DIM, dtype=torch.float64)
    boxes = torch.rand(2, 5, 4, dtype=torch.float64)
    offsets = 3 * torch.randn(2, 5, HEADS, points, 2, dtype=torch.float64)
    return value, boxes, offsets, torch.randn(2, 5, HEADS, points, dtype=torch.float64)


def looped(value, boxes, offsets, logits, num_points, read):
    """The weighted sum over all points of what `read(map, x, y)` gives at a location in 0..1."""
    weights, out = logits.softmax(-1), torch.zeros(2, 5, HEADS, DIM, dtype=torch.float64)
    for b in range(2):
        for q in range(5):
            for head in range(HEADS):
                point = start = 0
                for (h, w), count in zip(SHAPES, num_points, strict=True):
                    level = value[b, start : start + h * w, head].reshape(h, w, DIM)
                    for _ in range(count):
                        x, y = boxes[b, q, :2] + offsets[b, q, head, point] / count * boxes[b, q, 2:] * 0.5
                        out[b, q, head] += weights[b, q, head, point] * read(level, x.item(), y.item())
                        point += 1
                    start += h * w
    return out.flatten(2)


def bilinear(level, x, y):
    h, w = level.shape[:2]
    x, y = x * w - 0.5, y * h - 0.5
    out = torch.zeros(DIM, dtype=torch.float64)
    for row in range(h):
        for column in range(w):
            out += max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row)) * level[row, column]
    return out


def discrete(level, x, y):
    h, w = level.shape[:2]
    column, row = min(max(int(x * w + 0.5), 0), h - 1), min(max(int(y * h + 0.5), 0), h - 1)  # both by the height
    return level[row, column]


@pytest.mark.parametrize("num_points", [(2, 2), (3, 1), (1, 4)])
def test_bilinear(num_points):
    value, boxes, offsets, logits = inputs(num_points)
    even = even_points(offsets, logits, num_points)
    sizes = [side for shape in SHAPES for side in shape]
    actual = ms_deform_attn(value, boxes[:, :, None].repeat(1, 1, 2, 1), *even, sizes)
    torch.testing.assert_close(actual, looped(value, boxes, offsets, logits, num_points, bilinear))


@pytest.mark.parametrize("num_points", [(2, 2), (3, 1)])
def test_discrete_reads_no_column_beyond_the_height(num_points):
    value, boxes, offsets, logits = inputs(num_points)
    actual = sample_discretely(value, boxes, offsets, logits, SHAPES, num_points)
    torch.testing.assert_close(actual, looped(value, boxes, offsets, logits, num_points, discrete))


def test_points_far_away_read_the_border():
    value, boxes, offsets, logits = inputs((1, 1))
    actual = sample_discretely(value, boxes, offsets.sign() * 1e30, logits, SHAPES, (1, 1))
    assert actual.isfinite().all()


def test_points_that_fill_up_have_no_weight_in_half_precision():
    _, _, offsets, logits = inputs((3, 1))
    offsets, logits = even_points(offsets.half(), (1e3 * logits).half(), (3, 1))
    assert offsets.isfinite().all()
    weights = logits.float().flatten(3).softmax(-1).unflatten(3, (2, 3))
    assert (weights[..., 1, 1:] == 0).all()
