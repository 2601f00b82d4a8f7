import itertools
import math
import re

import numpy as np
import pytest
import torch

from builder.operators.interface import Message
from builder.operators.ms_deform_attn import _fake, ms_deform_attn, reference_ms_deform_attn

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
    # The function, which has no limits: "small" has heads of 2 channels, which the operator refuses.
    out = reference_ms_deform_attn(arrays["value"], reference, offsets, weights.log(), shapes.flatten().tolist())
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


def test_opcheck_of_the_backward():
    value, reference, offsets, logits, sizes = random_inputs()
    grad = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(1))
    operator = torch.ops.codetr.ms_deform_attn_backward.default
    torch.library.opcheck(operator, (grad, value, reference, offsets, logits, sizes, None))


def test_another_kernel_takes_the_place_of_the_backward_while_it_is_registered():
    def ones(grad, *inputs):
        return tuple(torch.ones_like(tensor) for tensor in inputs[:4])

    *tensors, sizes = random_inputs()
    leaves = [tensor.requires_grad_() for tensor in tensors]
    own = torch.autograd.grad(ms_deform_attn(*leaves, sizes).sum(), leaves)
    library = torch.library.Library("codetr", "IMPL")
    library.impl("ms_deform_attn_backward", ones, "CPU")
    replaced = torch.autograd.grad(ms_deform_attn(*leaves, sizes).sum(), leaves)
    del library
    again = torch.autograd.grad(ms_deform_attn(*leaves, sizes).sum(), leaves)
    assert all((gradient == 1).all() for gradient in replaced)
    assert all(torch.equal(before, after) for before, after in zip(own, again, strict=True))


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


TENSORS = ("value", "reference_points", "sampling_offsets", "attention_logits")


def inputs_with(**changes):
    names = (*TENSORS, "spatial_shapes", "valid_shapes")
    given = dict(zip(names, (*random_inputs(), torch.ones(2, 3, 2, dtype=torch.int32)), strict=True))
    return [*(given | changes).values()]


def of_dim(dim):
    return {"value": random_inputs(dim=dim)[0]} if dim else {"value": torch.zeros(2, 49, 2, 0)}


def of_levels(levels):
    return {
        "value": torch.zeros(2, levels, 2, 8),
        "reference_points": torch.zeros(2, 6, levels, 2),
        "sampling_offsets": torch.zeros(2, 6, 2, levels, 3, 2),
        "attention_logits": torch.zeros(2, 6, 2, levels, 3),
        "spatial_shapes": [1] * 2 * levels,
        "valid_shapes": None,
    }


def of_type(dtype):
    return {
        name: torch.ones(tensor.shape, dtype=dtype)
        for name, tensor in zip(("value", "_", "sampling_offsets", "attention_logits"), random_inputs(), strict=False)
        if name != "_"
    }


WRONG_TYPE = "has the wrong type; sampling_offsets and attention_logits have value's, reference_points float32"
REFUSED = {
    "value of 3 axes": ({"value": torch.zeros(2, 49, 16)}, "value must have 4 axes, got 3"),
    "offsets of 5 axes": ({"sampling_offsets": torch.zeros(2, 6, 2, 3, 6)}, "sampling_offsets must have 6 axes, got 5"),
    "reference of 3 axes": ({"reference_points": torch.zeros(2, 6, 2)}, "reference_points must have 4 axes, got 3"),
    "logits of 4 axes": ({"attention_logits": torch.zeros(2, 6, 2, 9)}, "attention_logits must have 5 axes, got 4"),
    "valid of 2 axes": ({"valid_shapes": torch.ones(2, 6, dtype=torch.int32)}, "valid_shapes must have 3 axes, got 2"),
    "int64 valid shapes": ({"valid_shapes": torch.ones(2, 3, 2, dtype=torch.int64)}, f"valid_shapes {WRONG_TYPE}"),
    "half reference": ({"reference_points": torch.zeros(2, 6, 3, 2).half()}, f"reference_points {WRONG_TYPE}"),
    "half offsets": ({"sampling_offsets": torch.zeros(2, 6, 2, 3, 3, 2).half()}, f"sampling_offsets {WRONG_TYPE}"),
    "double logits": ({"attention_logits": torch.zeros(2, 6, 2, 3, 3).double()}, f"attention_logits {WRONG_TYPE}"),
    "whole numbers": (of_type(torch.int32), "value must be float32, float16 or bfloat16"),
    "complex numbers": (of_type(torch.complex64), "value must be float32, float16 or bfloat16"),
    "2 channels": (of_dim(2), "the channels of a head must be a positive multiple of 4"),
    "6 channels": (of_dim(6), "the channels of a head must be a positive multiple of 4"),
    "no channels": (of_dim(0), "the channels of a head must be a positive multiple of 4"),
    "no levels": (of_levels(0), "there must be 1 to 8 levels"),
    "9 levels": (of_levels(9), "there must be 1 to 8 levels"),
    "negative sizes": ({"spatial_shapes": [-7, -5, 3, 4, 1, 2]}, "spatial_shapes must be positive, at most 2^20"),
    "a zero": (
        {"spatial_shapes": [7, 5, 3, 4, 2**21, 0], "value": torch.zeros(2, 47, 2, 8)},
        "spatial_shapes must be positive, at most 2^20",
    ),
    "no heads": (
        {
            "value": torch.zeros(2, 49, 0, 8),
            "sampling_offsets": torch.zeros(2, 6, 0, 3, 3, 2),
            "attention_logits": torch.zeros(2, 6, 0, 3, 3),
        },
        "there must be at least one head and one point",
    ),
    "no points": (
        {"sampling_offsets": torch.zeros(2, 6, 2, 3, 0, 2), "attention_logits": torch.zeros(2, 6, 2, 3, 0)},
        "there must be at least one head and one point",
    ),
    "an image too large": (
        {
            **{name: tensor.to("meta") for name, tensor in zip(TENSORS, random_inputs(), strict=False)},
            "value": torch.zeros(2, 2**40 + 14, 2, 8, device="meta"),
            "spatial_shapes": [2**20, 2**20, 3, 4, 1, 2],
            "valid_shapes": None,
        },
        "value has more than 2^31 tokens",
    ),
    "other sizes": ({"spatial_shapes": [7, 5, 3, 4, 1, 3]}, "value has 49 tokens, spatial_shapes make 50"),
    "an odd number of sizes": ({"spatial_shapes": SIZES[:-1]}, "spatial_shapes must hold h and w of 3 levels, got 5"),
    "coordinates": ({"reference_points": torch.zeros(2, 6, 3, 3)}, "reference_points must end in 2 (x, y) or 4"),
    "queries": (
        {"reference_points": torch.zeros(2, 5, 3, 2)},
        "reference_points must have shape (2, 6, 3, 2), got (2, 5, 3, 2)",
    ),
    "another device": (
        {"attention_logits": torch.zeros(2, 6, 2, 3, 3, device="meta")},
        "attention_logits must lie on the device of value",
    ),
}


MESSAGES = [text for name, text in vars(Message).items() if name.isupper()]


def refusal(kernel, arguments):
    with pytest.raises(RuntimeError) as caught:
        kernel(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("case", REFUSED)
def test_the_cpu_and_the_fake_kernel_refuse_what_the_cuda_operator_refuses(case):
    changes, message = REFUSED[case]
    arguments = inputs_with(**changes)
    assert refusal(OPERATOR, arguments).startswith(f"ms_deform_attn: {message}")
    assert refusal(_fake, arguments).startswith(f"ms_deform_attn: {message}")


def test_a_case_above_gives_every_message():
    given = [refusal(OPERATOR, inputs_with(**changes)) for changes, _ in REFUSED.values()]
    beginnings = [re.escape(f"ms_deform_attn: {message}").replace(r"\{\}", ".*") for message in MESSAGES]
    assert len(MESSAGES) > 10
    assert not [beginning for beginning in beginnings if not any(re.match(beginning, one) for one in given)]


@pytest.mark.parametrize("dim", [4, 8, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_is_allowed_is_computed(dtype, dim):
    assert ms_deform_attn(*random_inputs(dtype, dim=dim)).shape == (2, 6, 2 * dim)


def test_tensors_may_be_strided():
    value, reference, offsets, logits, sizes = random_inputs()
    strided = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (value, reference, offsets, logits)]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert torch.equal(ms_deform_attn(*strided, sizes), ms_deform_attn(value, reference, offsets, logits, sizes))


def test_no_queries_give_no_rows():
    value, reference, offsets, logits, sizes = random_inputs(queries=0)
    assert ms_deform_attn(value, reference, offsets, logits, sizes).shape == (2, 0, 16)
