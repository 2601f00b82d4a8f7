import itertools
import math

import numpy as np
import pytest
import torch

from builder.ms_deform_attn import ms_deform_attn

OPERATOR = torch.ops.codetr.ms_deform_attn.default
SHAPES = [(7, 5), (3, 4), (1, 2)]
SIZES = [side for shape in SHAPES for side in shape]


def random_inputs(dtype=torch.float32, coordinates=2, batch=2, queries=6, heads=2, dim=8, points=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(h * w for h, w in SHAPES)
    shape = (batch, queries, heads, len(SHAPES), points)
    value = torch.randn(batch, tokens, heads, dim, generator=generator).to(dtype)
    reference = torch.rand(batch, queries, len(SHAPES), coordinates, generator=generator) * 1.4 - 0.2
    offsets = (torch.randn(*shape, 2, generator=generator) * 2).to(dtype)
    logits = torch.randn(*shape, generator=generator).to(dtype)
    return value, reference, offsets, logits, SIZES


def brute_force(value, reference, offsets, logits, sizes, valid_shapes=None):
    """Sample point by point in Python float64, straight from the definition."""
    value, reference, offsets, logits = (x.double().numpy() for x in (value, reference, offsets, logits))
    batch, queries, heads, levels, points = logits.shape
    out = np.zeros((batch, queries, heads, value.shape[-1]))
    starts = _starts(sizes)
    for b, q, m in itertools.product(range(batch), range(queries), range(heads)):
        weights = np.exp(logits[b, q, m] - logits[b, q, m].max())
        weights /= weights.sum()
        for level, p in itertools.product(range(levels), range(points)):
            h, w = sizes[2 * level : 2 * level + 2]
            rows, columns = (h, w) if valid_shapes is None else valid_shapes[b, level].tolist()
            anchor = reference[b, q, level]
            scale = anchor[2:] * 0.5 / points if len(anchor) == 4 else np.array([1 / w, 1 / h])
            x, y = (anchor[:2] + offsets[b, q, m, level, p] * scale) * (w, h) - 0.5
            for row, column in itertools.product(
                (math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)
            ):
                if 0 <= row < rows and 0 <= column < columns:
                    share = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[level, p]
                    out[b, q, m] += share * value[b, starts[level] + row * w + column, m]
    return torch.from_numpy(out.reshape(batch, queries, -1))


def _starts(sizes):
    return np.cumsum([0, *(h * w for h, w in zip(sizes[::2], sizes[1::2], strict=True))])


@pytest.mark.parametrize("case", ["odd_dim", "one_level", "small", "std", "wide_dim"])
def test_equals_the_reference_arrays(data_dir, case):
    with np.load(data_dir / "msda.npz") as file:
        arrays = {key: torch.from_numpy(file[f"{case}/{key}"]) for key in ARRAYS}
    shapes = arrays["spatial_shapes"]
    locations, weights = arrays["sampling_locations"], arrays["attention_weights"]
    # As raw inputs: every reference point at the origin, offsets in pixels, logits whose softmax are the weights.
    offsets = locations * shapes.flip(-1)[:, None].float()
    reference = torch.zeros(*locations.shape[:2], len(shapes), 2)
    out = ms_deform_attn(arrays["value"], reference, offsets, weights.log(), shapes.flatten().tolist())
    torch.testing.assert_close(out.double(), arrays["output_f64"].reshape(out.shape), atol=1e-5, rtol=0)


ARRAYS = ("value", "spatial_shapes", "sampling_locations", "attention_weights", "output_f64")


@pytest.mark.parametrize("coordinates", [2, 4], ids=["encoder points", "decoder boxes"])
@pytest.mark.parametrize("masked", [False, True], ids=["all valid", "padded"])
def test_equals_brute_force(coordinates, masked):
    inputs = random_inputs(coordinates=coordinates)
    valid = torch.tensor([[[7, 5], [3, 4], [1, 2]], [[4, 3], [2, 1], [1, 1]]], dtype=torch.int32) if masked else None
    out = ms_deform_attn(*inputs, valid)
    torch.testing.assert_close(out.double(), brute_force(*inputs, valid), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_values_keep_float32_coordinates(dtype):
    """Against float64 on the same rounded inputs only the rounding of the output is left."""
    inputs = random_inputs(dtype)
    expected = brute_force(*inputs)
    error = (ms_deform_attn(*inputs).double() - expected).norm() / expected.norm()
    assert error < torch.finfo(dtype).eps / 2


def test_valid_shapes_equal_zeroed_tokens():
    value, *rest = random_inputs()
    valid = torch.tensor([[[5, 2], [2, 3], [1, 1]]] * 2, dtype=torch.int32)
    masks = [torch.zeros(h, w, dtype=torch.bool) for h, w in SHAPES]
    for mask, (h, w) in zip(masks, valid[0].tolist(), strict=True):
        mask[:h, :w] = True
    zeroed = value * torch.cat([mask.flatten() for mask in masks])[None, :, None, None]
    torch.testing.assert_close(ms_deform_attn(value, *rest, valid), ms_deform_attn(zeroed, *rest))


@pytest.mark.parametrize("coordinates", [2, 4])
def test_opcheck(coordinates):
    *tensors, sizes = random_inputs(coordinates=coordinates)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    torch.library.opcheck(OPERATOR, (*tensors, sizes, None))


def test_opcheck_with_valid_shapes():
    torch.library.opcheck(OPERATOR, (*random_inputs(), torch.ones(2, 3, 2, dtype=torch.int32)))


def test_gradients_equal_numerical_ones():
    *tensors, sizes = random_inputs(batch=1, queries=2, dim=4)
    tensors = [tensor.double().requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *leaves: ms_deform_attn(*leaves, sizes), tensors, atol=1e-6)


@pytest.mark.parametrize(
    ("position", "replacement", "message"),
    [
        (0, torch.zeros(2, 48, 2, 8), "value has 48 tokens"),
        (1, torch.zeros(2, 6, 3, 3), "must end in 2"),
        (1, torch.zeros(2, 5, 3, 2), r"reference_points must have shape \(2, 6, 3, 2\)"),
        (3, torch.zeros(2, 6, 2, 3, 4), "attention_logits must have shape"),
        (4, [7, 5], "h and w of 3 levels"),
    ],
)
def test_wrong_shapes_are_named(position, replacement, message):
    inputs = list(random_inputs())
    inputs[position] = replacement
    with pytest.raises(RuntimeError, match=message):
        ms_deform_attn(*inputs)
