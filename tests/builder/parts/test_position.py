import pytest
import torch
import torch.nn.functional as F

from builder.parts.position import level_valid_shapes, looked_up_positions, sine_position_embedding, token_mask

INPUTS = [((96, 128), 4), ((108, 90), 8), ((608, 608), 16), ((100, 333), 32), ((98, 61), 7)]


def pixel_mask(input_shape, size):
    mask = torch.ones(input_shape)
    mask[: size[0], : size[1]] = 0
    return mask[None, None]


@pytest.mark.parametrize(("input_shape", "stride"), INPUTS)
def test_valid_shapes_equal_the_interpolated_mask(input_shape, stride):
    """Every valid size of one input, against nearest-neighbour interpolation of the pixel mask itself."""
    shape = (-(-input_shape[0] // stride), -(-input_shape[1] // stride))
    steps = max(1, min(input_shape) // 48)
    sizes = [(max(1, input_shape[0] - i), max(1, i)) for i in range(1, input_shape[1] + 1, steps)]
    valid = level_valid_shapes(torch.tensor(sizes, dtype=torch.int32), input_shape, [shape])
    ours = token_mask(valid, [shape])
    masks = torch.cat([pixel_mask(input_shape, size) for size in sizes])
    expected = F.interpolate(masks, size=shape).flatten(1) == 0
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("valid", [(5, 7), (3, 7), (5, 2), (1, 1)])
def test_embedding_equals_the_cumulated_mask(valid):
    """DETR's definition: cumulated sums over the mask, normalised by the last, then interleaved sines and cosines."""
    h, w, channels, temperature = 5, 7, 12, 20
    inside = (pixel_mask((h, w), valid)[0] == 0).double()
    y, x = inside.cumsum(1), inside.cumsum(2)
    y = y / (y[:, -1:, :] + 1e-6) * 2 * torch.pi
    x = x / (x[:, :, -1:] + 1e-6) * 2 * torch.pi
    parts = []
    for coordinate in (y, x):
        for i in range(channels // 2):
            angle = coordinate / temperature ** (2 * (i // 2) / (channels // 2))
            parts.append(angle.sin() if i % 2 == 0 else angle.cos())
    expected = torch.stack(parts, dim=-1).flatten(1, 2).float()
    actual = sine_position_embedding((h, w), torch.tensor([valid], dtype=torch.int32), channels, temperature)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_what_is_looked_up_is_the_embedding_to_the_bit():
    """Of images without padding, with some, and with one valid token a level."""
    shapes = [(24, 36), (12, 18), (6, 9), (3, 5), (2, 3)]
    smaller = [(20, 30), (10, 15), (5, 8), (3, 4), (2, 2)]
    valid = torch.tensor([shapes, smaller, [(1, 1)] * 5], dtype=torch.int32)
    levels = torch.randn(5, 64).half()
    embeddings = [sine_position_embedding(shape, valid[:, i], 64, 20) for i, shape in enumerate(shapes)]
    expected = [embedding + level.float() for embedding, level in zip(embeddings, levels, strict=True)]
    assert torch.equal(looked_up_positions(shapes, valid, levels, 20), torch.cat(expected, dim=1))
