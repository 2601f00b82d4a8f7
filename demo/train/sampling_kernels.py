# mypy: disable-error-code="untyped-decorator,no-untyped-def,attr-defined,import-not-found"
# Triton's kernels have no types, and PyTorch for CPUs does not bring Triton.
"""Multi-scale deformable attention for training on a GPU: forward and backward as two Triton kernels.

`grid_sample`'s backward would take most of a training step. These kernels compute what
`builder.operators.ms_deform_attn` defines and add in float32; the channels of a head must be a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import triton
import triton.language as tl
from torch import Tensor

import builder.operators.ms_deform_attn  # noqa: F401  # defines the operators

QUERIES_PER_PROGRAM = 16


@contextmanager
def triton_kernels() -> Iterator[None]:
    """Let the operator and its backward run these kernels on CUDA tensors inside the `with` block."""
    library = torch.library.Library("codetr", "IMPL")
    library.impl("ms_deform_attn", forward, "CUDA")
    library.impl("ms_deform_attn_backward", backward, "CUDA")
    try:
        yield
    finally:
        del library  # and with it the registrations


def forward(
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[int],
    valid_shapes: Tensor | None = None,
) -> Tensor:
    """As `builder.operators.ms_deform_attn.ms_deform_attn`."""
    tensors = tuple(x.contiguous() for x in (value, reference_points, sampling_offsets, attention_logits))
    out = torch.empty(*sampling_offsets.shape[:3], value.shape[3], device=value.device, dtype=torch.float32)
    geometry = _geometry(value, spatial_shapes, valid_shapes)
    _forward_kernel[_grid(sampling_offsets)](*tensors, *geometry, out, *_sizes(*tensors[:3]))
    return out.flatten(2).to(value.dtype)


def backward(
    grad: Tensor,
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[int],
    valid_shapes: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `forward` for its four tensors, given that of its result, `grad` [B, Q, heads*dim]."""
    tensors = tuple(x.contiguous() for x in (value, reference_points, sampling_offsets, attention_logits))
    summed = [torch.zeros_like(x, dtype=torch.float32) for x in tensors[:2]]  # over queries, and over heads
    grad_offsets = torch.empty_like(tensors[2])
    grad_weights = torch.empty_like(tensors[3], dtype=torch.float32)
    geometry = _geometry(value, spatial_shapes, valid_shapes)
    grads = (grad.float().contiguous(), *summed, grad_offsets, grad_weights)
    _backward_kernel[_grid(sampling_offsets)](*tensors, *geometry, *grads, *_sizes(*tensors[:3]))
    weights, by_weight = attention_logits.float().flatten(3).softmax(-1), grad_weights.flatten(3)
    grad_logits = weights * (by_weight - (weights * by_weight).sum(-1, keepdim=True))
    grad_value, grad_references = summed
    return (
        grad_value.to(value.dtype),
        grad_references,
        grad_offsets,
        grad_logits.view(attention_logits.shape).to(attention_logits.dtype),
    )


def _geometry(value: Tensor, spatial_shapes: Sequence[int], valid_shapes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return h, w and first token of each level, int32 [L, 3], and the valid (h, w), int32 [B, L, 2]."""
    levels = list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))
    rows = [(h, w, sum(a * b for a, b in levels[:i])) for i, (h, w) in enumerate(levels)]
    table = torch.tensor(rows, dtype=torch.int32).to(value.device, non_blocking=True)
    valid = table[:, :2].expand(len(value), -1, -1) if valid_shapes is None else valid_shapes
    return table, valid.int().contiguous()


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
def _backward_kernel(value, references, offsets, logits, geometry, valid_shapes, grad, grad_value, grad_references,
                     grad_offsets, grad_weights, S, Q, H: tl.constexpr, L: tl.constexpr, P: tl.constexpr,
                     D: tl.constexpr, R: tl.constexpr, BQ: tl.constexpr):  # fmt: skip
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    query = tl.program_id(0) * BQ + tl.arange(0, BQ)
    inside = query < Q
    q = batch * Q + query
    row = q * H + head
    channel = tl.arange(0, D)[None, :]
    base = batch * S * H * D + head * D
    largest, total = _softmax_terms(logits, row, inside, L * P)
    g = tl.load(grad + row[:, None] * D + channel, mask=inside[:, None], other=0.0)
    for level in range(L):
        h, w = tl.load(geometry + level * 3), tl.load(geometry + level * 3 + 1)
        start = tl.load(geometry + level * 3 + 2)
        valid_h = tl.load(valid_shapes + (batch * L + level) * 2)
        valid_w = tl.load(valid_shapes + (batch * L + level) * 2 + 1)
        by_centre_x, by_centre_y = tl.zeros((BQ,), tl.float32), tl.zeros((BQ,), tl.float32)
        by_width, by_height = tl.zeros((BQ,), tl.float32), tl.zeros((BQ,), tl.float32)
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
            by_x, by_y = weight * by_x, weight * by_y
            tl.store(grad_offsets + off, by_x * scale_x, mask=inside)
            tl.store(grad_offsets + off + 1, by_y * scale_y, mask=inside)
            tl.store(grad_weights + row * (L * P) + j, by_weight, mask=inside)
            by_centre_x += by_x * w
            by_centre_y += by_y * h
            by_width += by_x * dx * w * (0.5 / P)
            by_height += by_y * dy * h * (0.5 / P)
        reference = grad_references + (q * L + level) * R
        tl.atomic_add(reference, by_centre_x, mask=inside, sem="relaxed")
        tl.atomic_add(reference + 1, by_centre_y, mask=inside, sem="relaxed")
        if R == 4:
            tl.atomic_add(reference + 2, by_width, mask=inside, sem="relaxed")
            tl.atomic_add(reference + 3, by_height, mask=inside, sem="relaxed")
