"""Multi-scale deformable attention as one PyTorch operator, `torch.ops.codetr.ms_deform_attn`.

Importing this module defines the operator with an implementation in plain PyTorch that serves every device; the
CUDA kernel of `plugin_src` registers under the same name and takes precedence on GPUs. Softmax, coordinates and
accumulation are float32 (float64 for float64 values) whatever the value's type.

Source: Deformable DETR (arXiv 2010.04159), section 4.1 and appendix A.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from builder.operators.interface import (
    CHANNEL_MULTIPLE,
    MAX_LEVEL_SIDE,
    MAX_LEVELS,
    MAX_TOKENS,
    OPERATOR_NAME,
    SCHEMA,
    Message,
)

# The gradients for the four tensors; an operator of its own, so that a faster kernel can take its place as well.
BACKWARD_SCHEMA = (
    "ms_deform_attn_backward(Tensor grad, Tensor value, Tensor reference_points, Tensor sampling_offsets, "
    "Tensor attention_logits, int[] spatial_shapes, Tensor? valid_shapes) -> (Tensor, Tensor, Tensor, Tensor)"
)
VALUE_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def ms_deform_attn(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[int],
    valid_shapes: Tensor | None = None,
) -> Tensor:
    """Sample `value` around each reference point on every level and sum the samples by attention weight.

    Args:
        value: [B, S, heads, dim], the projected memory; S is the sum of h*w over levels, in row-major order.
        reference_points: float32 [B, Q, levels, 2] (x, y) or [B, Q, levels, 4] (cx, cy, w, h), 0..1 of each level.
        sampling_offsets: [B, Q, heads, levels, points, 2] (x, y), raw: in pixels of the level for 2-d reference
            points, in half box sizes over `points` for 4-d ones. Type of `value`.
        attention_logits: [B, Q, heads, levels, points], before the softmax over levels and points. Type of `value`.
        spatial_shapes: level sizes as one flat list of constants, h0, w0, h1, w1, ...
        valid_shapes: int32 [B, levels, 2], the unpadded (h, w) of each level; tokens beyond read as zero. Without
            it every token counts.

    Returns:
        [B, Q, heads*dim] in the type of `value`. Samples outside a level read zeros.

    Raises:
        RuntimeError: a shape, a type or a device does not fit the others, or is none that the CUDA kernel and the
            TensorRT plugin can do: dim is a multiple of 4, levels are 1 to 8. Only on a CPU can `value` be float64,
            for gradients to be checked with; reference_points are then float32 or float64.
    """
    return torch.ops.codetr.ms_deform_attn(
        value, reference_points, sampling_offsets, attention_logits, list(spatial_shapes), valid_shapes
    )


def reference_ms_deform_attn(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[int],
    valid_shapes: Tensor | None = None,
) -> Tensor:
    """Compute `ms_deform_attn` with `grid_sample`; differentiable, and what exports without the operator decompose to.

    The arguments and the result are those of `ms_deform_attn`, with any dim, any number of levels and any mixture of
    floating-point types. Raises RuntimeError where a shape does not fit the others.
    """
    _check_shapes(value, reference_points, sampling_offsets, attention_logits, spatial_shapes, valid_shapes)
    B, _, heads, dim = value.shape
    Q, levels, points = sampling_offsets.shape[1], sampling_offsets.shape[3], sampling_offsets.shape[4]
    compute_dtype = torch.promote_types(value.dtype, torch.float32)

    shapes = _pairs(spatial_shapes)
    weights = attention_logits.to(compute_dtype).flatten(3).softmax(-1).unflatten(3, (levels, points))

    def sample(level: int, tokens: Tensor, h: int, w: int) -> Tensor:
        feature_map = tokens.to(compute_dtype).permute(0, 2, 3, 1).reshape(B, heads * dim, h, w)
        if valid_shapes is not None:
            feature_map = feature_map * _valid_mask(valid_shapes[:, level], h, w).unsqueeze(1)
        locations = _sampling_locations(
            reference_points[:, :, level].to(compute_dtype), sampling_offsets[:, :, :, level].to(compute_dtype), h, w
        )  # [B, Q, heads, points, 2]
        samples = F.grid_sample(
            feature_map.reshape(B * heads, dim, h, w),
            (2 * locations - 1).transpose(1, 2).flatten(0, 1),  # [B*heads, Q, points, 2] in -1..1
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )  # [B*heads, dim, Q, points]
        level_weights = weights[:, :, :, level].transpose(1, 2).flatten(0, 1).unsqueeze(1)  # [B*heads, 1, Q, points]
        return (samples * level_weights).sum(-1)

    maps = value.split([h * w for h, w in shapes], 1)
    parts = (sample(level, tokens, h, w) for level, (tokens, (h, w)) in enumerate(zip(maps, shapes, strict=True)))
    out = reduce(torch.add, parts)  # [B*heads, dim, Q]
    return out.reshape(B, heads * dim, Q).transpose(1, 2).to(value.dtype).contiguous()


def _pairs(spatial_shapes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))


def _sampling_locations(reference_points: Tensor, offsets: Tensor, h: int, w: int) -> Tensor:
    """Return the sampled positions on one level, [B, Q, heads, points, 2] (x, y) in 0..1.

    `reference_points` is [B, Q, 2 or 4], `offsets` [B, Q, heads, points, 2].
    """
    anchors = reference_points[:, :, None, None, :]
    if reference_points.shape[-1] == 4:
        return anchors[..., :2] + offsets / offsets.shape[3] * anchors[..., 2:] * 0.5
    return anchors + torch.stack([offsets[..., 0] / w, offsets[..., 1] / h], dim=-1)


def _valid_mask(valid_shape: Tensor, h: int, w: int) -> Tensor:
    """Return bool [B, h, w], true on the valid (h, w) of each image given as int32 [B, 2]."""
    rows = torch.arange(h, device=valid_shape.device) < valid_shape[:, :1]
    columns = torch.arange(w, device=valid_shape.device) < valid_shape[:, 1:]
    return rows.unsqueeze(2) & columns.unsqueeze(1)


def _check_shapes(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[int],
    valid_shapes: Tensor | None,
) -> None:
    for name, tensor, axes in (
        ("value", value, 4),
        ("sampling_offsets", sampling_offsets, 6),
        ("reference_points", reference_points, 4),
    ):
        _expect(tensor.dim() == axes, Message.AXES, name, axes, tensor.dim())
    B, S, heads, _ = value.shape
    _, Q, _, levels, points, _ = sampling_offsets.shape
    _expect(len(spatial_shapes) == 2 * levels, Message.SIZES, levels, len(spatial_shapes))
    _expect_shape("sampling_offsets", sampling_offsets, B, Q, heads, levels, points, 2)
    _expect_shape("attention_logits", attention_logits, B, Q, heads, levels, points)
    coordinates = reference_points.shape[-1]
    _expect_shape("reference_points", reference_points, B, Q, levels, coordinates)
    if valid_shapes is not None:
        _expect_shape("valid_shapes", valid_shapes, B, levels, 2)
    _expect(coordinates in (2, 4), f"{Message.COORDINATES}, got {coordinates}")
    tokens = sum(h * w for h, w in _pairs(spatial_shapes))
    _expect(tokens == S, Message.TOKENS, S, tokens)


def _check_limits(value: Tensor, sampling_offsets: Tensor, spatial_shapes: Sequence[int]) -> None:
    """Check what can be seen of `value`, the number of points and the levels alone, as `findFault` does."""
    types = VALUE_TYPES if value.is_cuda else (*VALUE_TYPES, torch.float64)
    heads, dim, levels, points = *value.shape[2:], *sampling_offsets.shape[3:5]
    _expect(value.dtype in types, f"{Message.VALUE_TYPE}, got {value.dtype}")
    _expect(heads >= 1 and points >= 1, f"{Message.HEADS_AND_POINTS}, got {heads} and {points}")
    _expect(dim >= CHANNEL_MULTIPLE and dim % CHANNEL_MULTIPLE == 0, f"{Message.CHANNELS}, got {dim}")
    _expect(1 <= levels <= MAX_LEVELS, f"{Message.LEVELS}, got {levels}")
    _expect(all(1 <= side <= MAX_LEVEL_SIDE for side in spatial_shapes), f"{Message.SIDES}, got {list(spatial_shapes)}")
    tokens = sum(h * w for h, w in _pairs(spatial_shapes))
    _expect(tokens <= MAX_TOKENS, f"{Message.MANY_TOKENS}, got {tokens}")


def _check_kinds(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    valid_shapes: Tensor | None,
) -> None:
    """Check the devices and types of the tensors beside `value`."""
    points = (torch.float32, torch.float64) if value.dtype == torch.float64 else (torch.float32,)
    for name, tensor, types in (
        ("sampling_offsets", sampling_offsets, (value.dtype,)),
        ("attention_logits", attention_logits, (value.dtype,)),
        ("reference_points", reference_points, points),
        ("valid_shapes", valid_shapes, (torch.int32,)),
    ):
        if tensor is None:
            continue
        _expect(tensor.device == value.device, Message.DEVICE, name)
        _expect(tensor.dtype in types, Message.TYPE, name)


def _expect(fits: bool, message: str, *values: object) -> None:
    if not fits:
        raise RuntimeError(f"{OPERATOR_NAME}: {message.format(*values)}")


def _expect_shape(name: str, tensor: Tensor, *shape: int) -> None:
    _expect(tensor.dim() == len(shape), Message.AXES, name, len(shape), tensor.dim())
    _expect(tuple(tensor.shape) == shape, Message.SHAPE, name, shape, tuple(tensor.shape))


def _implementation(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[int],
    valid_shapes: Tensor | None = None,
) -> Tensor:
    """Compute the operator wherever the CUDA kernel does not."""
    tensors = (value, reference_points, sampling_offsets, attention_logits)
    _check(*tensors, spatial_shapes, valid_shapes)
    return reference_ms_deform_attn(*tensors, spatial_shapes, valid_shapes)


def _fake(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[int],
    valid_shapes: Tensor | None = None,
) -> Tensor:
    _check(value, reference_points, sampling_offsets, attention_logits, spatial_shapes, valid_shapes)
    B, _, heads, dim = value.shape
    return value.new_empty((B, sampling_offsets.shape[1], heads * dim))


def _check(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[int],
    valid_shapes: Tensor | None,
) -> None:
    _check_kinds(value, reference_points, sampling_offsets, attention_logits, valid_shapes)
    _check_shapes(value, reference_points, sampling_offsets, attention_logits, spatial_shapes, valid_shapes)
    _check_limits(value, sampling_offsets, spatial_shapes)


def _save_for_backward(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # the context has no public type
    *tensors, ctx.spatial_shapes, valid_shapes = inputs
    ctx.save_for_backward(*tensors, valid_shapes)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]  # as above
    *tensors, valid_shapes = ctx.saved_tensors
    grads = torch.ops.codetr.ms_deform_attn_backward(grad, *tensors, ctx.spatial_shapes, valid_shapes)
    return *grads, None, None


def _backward_implementation(
    grad: Tensor,
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[int],
    valid_shapes: Tensor | None,
) -> tuple[Tensor, ...]:
    """Differentiate the reference implementation: training speed is not what the operator is for."""
    tensors = (value, reference_points, sampling_offsets, attention_logits)
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        out = reference_ms_deform_attn(leaves[0], leaves[1], leaves[2], leaves[3], spatial_shapes, valid_shapes)
        return torch.autograd.grad(out, leaves, grad)


for _schema in (SCHEMA, BACKWARD_SCHEMA):
    torch.library.define(f"codetr::{_schema.split('(')[0]}", _schema[_schema.index("(") :])
torch.library.impl("codetr::ms_deform_attn", "CompositeExplicitAutograd", _implementation)
torch.library.register_fake("codetr::ms_deform_attn", _fake)
torch.library.register_autograd("codetr::ms_deform_attn", _backward, setup_context=_save_for_backward)
# Implicit, since it differentiates: below autograd, where explicit implementations run, nothing has gradients.
torch.library.impl("codetr::ms_deform_attn_backward", "CompositeImplicitAutograd", _backward_implementation)
