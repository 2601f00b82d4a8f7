"""Attention inside (shifted) windows as one PyTorch operator, `torch.ops.codetr.window_attention`.

It reads queries, keys and values where the projection left them and writes where the next projection reads: nothing is
rolled, padded or cut into windows around it. Importing this module defines the operator with an implementation in plain
PyTorch that serves every device; the CUDA kernel of `plugin_src` takes precedence on GPUs.

Source: Swin Transformer (arXiv 2103.14030), section 3, with the padding of mmdetection's `swin.py`: it takes part in
the attention, with the bias of the projection as its query, key and value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATOR_NAME = "window_attention"
SCHEMA = "window_attention(Tensor qkv, Tensor? qkv_bias, Tensor bias_table, int window_size, int shift) -> Tensor"
BACKWARD_SCHEMA = (
    "window_attention_backward(Tensor grad, Tensor qkv, Tensor? qkv_bias, Tensor bias_table, int window_size, "
    "int shift) -> (Tensor, Tensor?, Tensor)"
)
# What the CUDA kernel does; anything else is written out in standard operators.
KERNEL_TYPES = (torch.float16, torch.bfloat16)
KERNEL_WINDOWS = (7, 12)
KERNEL_HEAD_DIM = 32
# Added to the score of a pair that shares a shifted window but no neighbourhood (mmdetection `ShiftWindowMSA`).
REGION_PENALTY = -100.0


def window_attention(qkv: Tensor, qkv_bias: Tensor | None, bias_table: Tensor, window_size: int, shift: int) -> Tensor:
    """Attend within each window of a map.

    Args:
        qkv: [B, h, w, 3*C], the projection's output: query, key and value of all heads.
        qkv_bias: [3*C], the projection's bias, which the padding has for query, key and value; None: zeros.
        bias_table: [(2*window_size-1)**2, heads], the bias of each relative position.
        window_size: tokens, the side of a window.
        shift: tokens by which the windows are shifted down and to the right, 0 to window_size-1.

    Returns:
        [B, h, w, C] in the type of `qkv`. The softmax is float32 (float64 for float64).
    """
    if qkv.is_cuda and not has_kernel(qkv, bias_table, window_size):
        return reference_window_attention(qkv, qkv_bias, bias_table, window_size, shift)
    return torch.ops.codetr.window_attention(qkv, qkv_bias, bias_table, window_size, shift)


def has_kernel(qkv: Tensor, bias_table: Tensor, window_size: int) -> bool:
    """Return whether the CUDA kernel does this attention: half precision, windows and heads of the published models."""
    dim = qkv.shape[-1] // (3 * bias_table.shape[1])
    types = qkv.dtype in KERNEL_TYPES and bias_table.dtype == qkv.dtype
    return types and dim == KERNEL_HEAD_DIM and window_size in KERNEL_WINDOWS


def reference_window_attention(
    qkv: Tensor, qkv_bias: Tensor | None, bias_table: Tensor, window_size: int, shift: int
) -> Tensor:
    """Compute `window_attention` in standard operators; differentiable, and what exports without it decompose to."""
    _check(qkv, qkv_bias, bias_table, window_size, shift)
    _, h, w, _ = qkv.shape
    heads = bias_table.shape[1]
    padded = _pad(qkv, qkv_bias, window_size)
    rolled = padded.roll((-shift, -shift), (1, 2)) if shift else padded
    windows = partition_windows(rolled, window_size)  # [B, nW, N, 3*C]
    query, key, value = windows.unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)  # [B, nW, heads, N, dim]
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + _position_bias(bias_table, window_size)
    if shift:
        scores = scores + region_bias(h, w, window_size, shift, qkv.device)
    out = F.softmax(scores, dim=-1).to(value.dtype) @ value
    merged = merge_windows(out.transpose(2, 3).flatten(3), padded.shape[1], padded.shape[2])
    return (merged.roll((shift, shift), (1, 2)) if shift else merged)[:, :h, :w].contiguous()


def _pad(qkv: Tensor, qkv_bias: Tensor | None, window_size: int) -> Tensor:
    """Pad at the bottom and right to whole windows."""
    _, h, w, _ = qkv.shape
    below, right = -h % window_size, -w % window_size
    if not below and not right:
        return qkv
    padded = F.pad(qkv, (0, 0, 0, right, 0, below))
    if qkv_bias is None:
        return padded
    inside = F.pad(qkv.new_ones((h, w, 1)), (0, 0, 0, right, 0, below))
    return padded + (1 - inside) * qkv_bias


def _position_bias(bias_table: Tensor, window_size: int) -> Tensor:
    """Return [heads, N, N], at least float32."""
    tokens = window_size**2
    index = relative_position_index(window_size, bias_table.device)
    bias = bias_table[index.flatten()].view(tokens, tokens, -1).permute(2, 0, 1)
    return bias.to(torch.promote_types(bias.dtype, torch.float32))


def relative_position_index(window_size: int, device: torch.device) -> Tensor:
    """Return int64 [N, N]: the row of the bias table for each pair of the N = window_size**2 tokens."""
    side = torch.arange(window_size, device=device)
    y, x = torch.meshgrid(side, side, indexing="ij")
    dy = y.flatten()[:, None] - y.flatten() + window_size - 1
    dx = x.flatten()[:, None] - x.flatten() + window_size - 1
    return dy * (2 * window_size - 1) + dx


def partition_windows(x: Tensor, window_size: int) -> Tensor:
    """Cut `x` [B, h, w, C] into windows [B, nW, window_size**2, C], in row-major order."""
    _, h, w, _ = x.shape
    x = x.unflatten(2, (w // window_size, window_size)).unflatten(1, (h // window_size, window_size))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def merge_windows(windows: Tensor, h: int, w: int) -> Tensor:
    """Undo `partition_windows` for a map of `h` x `w` tokens."""
    size = int(windows.shape[2] ** 0.5)
    x = windows.unflatten(2, (size, size)).unflatten(1, (h // size, w // size))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def region_bias(h: int, w: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Return float32 [nW, 1, N, N]: REGION_PENALTY between tokens that only the shift brought into one window."""
    rows = _regions(h, window_size, shift, device)[:, None]
    columns = _regions(w, window_size, shift, device)[None, :]
    regions = partition_windows((3 * rows + columns)[None, :, :, None], window_size)[0, :, :, 0]  # [nW, N]
    differ = regions[:, None, :] != regions[:, :, None]
    return REGION_PENALTY * differ.float().unsqueeze(1)


def _regions(length: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """Number the tokens of one padded side 0, 1, 2: cut at one window and at the shift from its end."""
    padded = length + -length % window_size
    position = torch.arange(padded, device=device)
    return (position >= padded - window_size).long() + (position >= padded - shift).long()


def _check(qkv: Tensor, qkv_bias: Tensor | None, bias_table: Tensor, window_size: int, shift: int) -> None:
    _expect(qkv.dim() == 4, f"qkv must have 4 axes, got {qkv.dim()}")
    _expect(bias_table.dim() == 2, f"bias_table must have 2 axes, got {bias_table.dim()}")
    heads, channels = bias_table.shape[1], qkv.shape[3]
    _expect(window_size >= 1, f"window_size must be at least 1, got {window_size}")
    _expect(0 <= shift < window_size, f"shift must be at least 0 and less than window_size, got {shift}")
    _expect(heads >= 1 and channels % (3 * heads) == 0, f"{channels} channels are no three times {heads} heads")
    rows = (2 * window_size - 1) ** 2
    _expect(bias_table.shape[0] == rows, f"bias_table must have {rows} rows, got {bias_table.shape[0]}")
    if qkv_bias is not None:
        _expect(tuple(qkv_bias.shape) == (channels,), f"qkv_bias must have shape {(channels,)}")


def _expect(fits: bool, message: str) -> None:
    if not fits:
        raise RuntimeError(f"{OPERATOR_NAME}: {message}")


def _fake(qkv: Tensor, qkv_bias: Tensor | None, bias_table: Tensor, window_size: int, shift: int) -> Tensor:
    _check(qkv, qkv_bias, bias_table, window_size, shift)
    B, h, w, channels = qkv.shape
    return qkv.new_empty((B, h, w, channels // 3))


def _save_for_backward(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]  # the context has no public type
    *tensors, ctx.window_size, ctx.shift = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]  # as above
    arguments = (grad, *ctx.saved_tensors, ctx.window_size, ctx.shift)
    return *torch.ops.codetr.window_attention_backward(*arguments), None, None


def _backward_implementation(
    grad: Tensor, qkv: Tensor, qkv_bias: Tensor | None, bias_table: Tensor, window_size: int, shift: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Differentiate the reference implementation: training speed is not what the operator is for."""
    with torch.enable_grad():
        qkv, bias_table = (tensor.detach().requires_grad_() for tensor in (qkv, bias_table))
        qkv_bias = None if qkv_bias is None else qkv_bias.detach().requires_grad_()
        out = reference_window_attention(qkv, qkv_bias, bias_table, window_size, shift)
        leaves = [tensor for tensor in (qkv, bias_table, qkv_bias) if tensor is not None]
        grads = torch.autograd.grad(out, leaves, grad, allow_unused=True)  # without padding its bias is of no use
    return grads[0], grads[2] if len(grads) == 3 else None, grads[1]


for _schema in (SCHEMA, BACKWARD_SCHEMA):
    torch.library.define(f"codetr::{_schema.split('(')[0]}", _schema[_schema.index("(") :])
torch.library.impl("codetr::window_attention", "CompositeExplicitAutograd", reference_window_attention)
torch.library.register_fake("codetr::window_attention", _fake)
torch.library.register_autograd("codetr::window_attention", _backward, setup_context=_save_for_backward)
# Implicit, since it differentiates: below autograd, where explicit implementations run, nothing has gradients.
torch.library.impl("codetr::window_attention_backward", "CompositeImplicitAutograd", _backward_implementation)
