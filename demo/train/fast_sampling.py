# mypy: disable-error-code="untyped-decorator,no-untyped-def,attr-defined,import-not-found"
# Triton's kernels have no types, and PyTorch for CPUs does not bring Triton.
"""Multi-scale deformable attention for training on a GPU: forward and backward as two Triton kernels.

`grid_sample`'s backward would take most of a training step; these kernels compute what
`builder.operators.ms_deform_attn` defines, without a gradient for the reference points, which DETR detaches. Both add
in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from builder.co_dino import deformable

QUERIES_PER_PROGRAM = 16


@contextmanager
def fast_sampling() -> Iterator[None]:
    """Let every deformable attention layer use these kernels inside the `with` block."""
    original = deformable.ms_deform_attn
    deformable.ms_deform_attn = ms_deform_attn
    try:
        yield
    finally:
        deformable.ms_deform_attn = original


def ms_deform_attn(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[int],
    valid_shapes: Tensor | None = None,
) -> Tensor:
    """As `builder.operators.ms_deform_attn.ms_deform_attn`; the channels of a head must be a power of two."""
    shapes = torch.tensor(spatial_shapes, dtype=torch.int32).view(-1, 2)
    if valid_shapes is None:
        valid_shapes = shapes.to(value.device).expand(len(value), -1, -1)
    levels = [(int(h), int(w)) for h, w in shapes]
    out: Tensor = _Sampling.apply(
        value, reference_points.detach().float(), sampling_offsets, attention_logits, levels, valid_shapes
    )
    return out


class _Sampling(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        references: Tensor,
        offsets: Tensor,
        logits: Tensor,
        levels: list[tuple[int, int]],
        valid_shapes: Tensor,
    ) -> Tensor:
        value, references, offsets, logits = (x.contiguous() for x in (value, references, offsets, logits))
        starts = [sum(h * w for h, w in levels[:i]) for i in range(len(levels))]
        table = [(h, w, start) for (h, w), start in zip(levels, starts, strict=True)]
        geometry = torch.tensor(table, dtype=torch.int32).to(value.device, non_blocking=True)
        out = torch.empty(*offsets.shape[:3], value.shape[3], device=value.device, dtype=torch.float32)
        tensors = (value, references, offsets, logits, geometry, valid_shapes.int().contiguous())
        _forward_kernel[_grid(offsets)](*tensors, out, *_sizes(value, references, offsets))
        ctx.save_for_backward(*tensors, out)
        return out.flatten(2).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, out = ctx.saved_tensors
        value, references, offsets, logits, _, _ = tensors
        grad = grad.reshape(out.shape).float().contiguous()
        grad_value = torch.zeros_like(value, dtype=torch.float32)
        grad_offsets, grad_logits = torch.empty_like(offsets), torch.empty_like(logits)
        sizes = _sizes(value, references, offsets)
        _backward_kernel[_grid(offsets)](*tensors, out, grad, grad_value, grad_offsets, grad_logits, *sizes)
        return grad_value.to(value.dtype), None, grad_offsets, grad_logits, None, None


def _grid(offsets: Tensor) -> tuple[int, int, int]:
    return triton.cdiv(offsets.shape[1], QUERIES_PER_PROGRAM), offsets.shape[2], offsets.shape[0]


def _sizes(value: Tensor, references: Tensor, offsets: Tensor) -> tuple[int, ...]:
    """Return S, Q and the kernels' constants: heads, levels, points, channels, reference width, queries a program."""
    Q, heads, levels, points = offsets.shape[1:5]
    return value.shape[1], Q, heads, levels, points, value.shape[3], references.shape[-1], QUERIES_PER_PROGRAM


@triton.jit
def _softmax_terms(logits, row, inside, LP: tl.constexpr):
    """Return the largest logit of each query and the sum of exponentials below it."""
    largest = tl.full(row.shape, float("-inf"), tl.float32)
    for j in range(LP):
        largest = tl.maximum(largest, tl.load(logits + row * LP + j, mask=inside, other=0.0).to(tl.float32))
    total = tl.zeros(row.shape, tl.float32)
    for j in range(LP):
        total += tl.exp(tl.load(logits + row * LP + j, mask=inside, other=0.0).to(tl.float32) - largest)
    return largest, total


@triton.jit
def _position(references, offset, row, q, inside, level, axis: tl.constexpr, side,
              L: tl.constexpr, P: tl.constexpr, R: tl.constexpr):  # fmt: skip
    """Return the sampled coordinate along one axis in pixels of the level, and its derivative by the offset."""
    centre = tl.load(references + (q * L + level) * R + axis, mask=inside, other=0.0)
    scale = tl.full(centre.shape, 1.0, tl.float32)
    if R == 4:
        scale = tl.load(references + (q * L + level) * R + 2 + axis, mask=inside, other=0.0) * side * (0.5 / P)
    return centre * side - 0.5 + offset * scale, scale


@triton.jit
def _corner(x, y, inside, valid_h, valid_w, width, start):
    """Return the token at integral (x, y) and whether it lies inside the valid part."""
    seen = inside & (x >= 0) & (y >= 0) & (x < valid_w) & (y < valid_h)
    return tl.where(seen, start + y.to(tl.int32) * width + x.to(tl.int32), 0), seen


@triton.jit
def _forward_kernel(value, references, offsets, logits, geometry, valid_shapes, out, S, Q, H: tl.constexpr,
                    L: tl.constexpr, P: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
                    BQ: tl.constexpr):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BQ + tl.arange(0, BQ)
    inside = query < Q
    q = batch * Q + query
    row = q * H + head
    channel = tl.arange(0, D)[None, :]
    tokens = value + batch * S * H * D + head * D
    largest, total = _softmax_terms(logits, row, inside, L * P)
    sum_ = tl.zeros((BQ, D), tl.float32)
    for level in range(L):
        h, w = tl.load(geometry + level * 3), tl.load(geometry + level * 3 + 1)
        start = tl.load(geometry + level * 3 + 2)
        valid_h = tl.load(valid_shapes + (batch * L + level) * 2)
        valid_w = tl.load(valid_shapes + (batch * L + level) * 2 + 1)
        for point in range(P):
            j = level * P + point
            weight = tl.exp(tl.load(logits + row * (L * P) + j, mask=inside, other=0.0).to(tl.float32) - largest)
            weight = weight / total
            off = offsets + (row * (L * P) + j) * 2
            dx = tl.load(off, mask=inside, other=0.0).to(tl.float32)
            dy = tl.load(off + 1, mask=inside, other=0.0).to(tl.float32)
            x, _ = _position(references, dx, row, q, inside, level, 0, w, L, P, R)
            y, _ = _position(references, dy, row, q, inside, level, 1, h, L, P, R)
            x0, y0 = tl.floor(x), tl.floor(y)
            fx, fy = x - x0, y - y0
            for corner in tl.static_range(4):
                cx, cy = x0 + corner % 2, y0 + corner // 2
                token, seen = _corner(cx, cy, inside, valid_h, valid_w, w, start)
                share = (fx if corner % 2 else 1 - fx) * (fy if corner // 2 else 1 - fy)
                v = tl.load(tokens + token[:, None] * (H * D) + channel, mask=seen[:, None], other=0.0)
                sum_ += (weight * share)[:, None] * v.to(tl.float32)
    tl.store(out + row[:, None] * D + channel, sum_, mask=inside[:, None])


@triton.jit
def _backward_kernel(value, references, offsets, logits, geometry, valid_shapes, out, grad, grad_value, grad_offsets,
                     grad_logits, S, Q, H: tl.constexpr, L: tl.constexpr, P: tl.constexpr, D: tl.constexpr,
                     R: tl.constexpr, BQ: tl.constexpr):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BQ + tl.arange(0, BQ)
    inside = query < Q
    q = batch * Q + query
    row = q * H + head
    channel = tl.arange(0, D)[None, :]
    base = batch * S * H * D + head * D
    largest, total = _softmax_terms(logits, row, inside, L * P)
    g = tl.load(grad + row[:, None] * D + channel, mask=inside[:, None], other=0.0)
    # The softmax's backward needs the sum over samples of weight * (grad . sample), which is grad . out.
    mean = tl.sum(g * tl.load(out + row[:, None] * D + channel, mask=inside[:, None], other=0.0), axis=1)
    for level in range(L):
        h, w = tl.load(geometry + level * 3), tl.load(geometry + level * 3 + 1)
        start = tl.load(geometry + level * 3 + 2)
        valid_h = tl.load(valid_shapes + (batch * L + level) * 2)
        valid_w = tl.load(valid_shapes + (batch * L + level) * 2 + 1)
        for point in range(P):
            j = level * P + point
            weight = tl.exp(tl.load(logits + row * (L * P) + j, mask=inside, other=0.0).to(tl.float32) - largest)
            weight = weight / total
            off = (row * (L * P) + j) * 2
            dx = tl.load(offsets + off, mask=inside, other=0.0).to(tl.float32)
            dy = tl.load(offsets + off + 1, mask=inside, other=0.0).to(tl.float32)
            x, scale_x = _position(references, dx, row, q, inside, level, 0, w, L, P, R)
            y, scale_y = _position(references, dy, row, q, inside, level, 1, h, L, P, R)
            x0, y0 = tl.floor(x), tl.floor(y)
            fx, fy = x - x0, y - y0
            by_weight, by_x, by_y = (
                tl.zeros((BQ,), tl.float32),
                tl.zeros((BQ,), tl.float32),
                tl.zeros((BQ,), tl.float32),
            )
            for corner in tl.static_range(4):
                cx, cy = x0 + corner % 2, y0 + corner // 2
                token, seen = _corner(cx, cy, inside, valid_h, valid_w, w, start)
                share_x, share_y = (fx if corner % 2 else 1 - fx), (fy if corner // 2 else 1 - fy)
                at = base + token[:, None] * (H * D) + channel
                v = tl.load(value + at, mask=seen[:, None], other=0.0).to(tl.float32)
                dot = tl.sum(g * v, axis=1)
                by_weight += share_x * share_y * dot
                by_x += (share_y if corner % 2 else -share_y) * dot
                by_y += (share_x if corner // 2 else -share_x) * dot
                tl.atomic_add(
                    grad_value + at, (weight * share_x * share_y)[:, None] * g, mask=seen[:, None], sem="relaxed"
                )
            tl.store(grad_offsets + off, weight * by_x * scale_x, mask=inside)
            tl.store(grad_offsets + off + 1, weight * by_y * scale_y, mask=inside)
            tl.store(grad_logits + row * (L * P) + j, weight * (by_weight - mean), mask=inside)
