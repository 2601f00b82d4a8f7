"""Floating-point operations of a detector, counted on tensors that have shapes but no content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from builder.families import family_of
from builder.family import DetectorConfig
from builder.pipeline.export import InputSpec

# Of one sample and channel: four corners, each multiplied and added, and the attention weight likewise.
SAMPLE_FLOPS = 10
TOTAL = "total"


def count_flops(variant: DetectorConfig, spec: InputSpec) -> dict[str, int]:
    """Return the operations of one inference of `spec`'s largest batch: of each top-level module, and `TOTAL`.

    Counted are matrix products, convolutions, window and deformable attention, a multiplication and an addition as two;
    not norms, softmaxes and other element-wise work.
    """
    # A mode rather than the meta device: the detector's constants and masks come from the CPU.
    with FakeTensorMode(), torch.no_grad():
        detector = family_of(variant).network(variant).eval().requires_grad_(False)
        formulas = {
            torch.ops.codetr.ms_deform_attn: ms_deform_attn_flops,
            torch.ops.codetr.window_attention: window_attention_flops,
        }
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            detector(*spec.sample_inputs())
    by_module = counter.get_flop_counts()
    parts = {
        name: sum(by_module.get(f"{type(detector).__name__}.{name}", {}).values())
        for name, _ in detector.named_children()
    }
    return {**{name: flops for name, flops in parts.items() if flops}, TOTAL: counter.get_total_flops()}


def ms_deform_attn_flops(value: Sequence[int], *shapes: Any, **_: Any) -> int:
    """Return the operations of one call of the operator, from the shapes of its arguments.

    Args:
        value: [B, S, heads, dim].
        shapes: of the other arguments; the third is that of the logits, [B, Q, heads, levels, points].
    """
    samples = 1
    for size in shapes[2]:
        samples *= size
    return SAMPLE_FLOPS * samples * value[3]


def window_attention_flops(
    qkv: Sequence[int], qkv_bias: Sequence[int] | None, bias_table: Sequence[int], window_size: int, *_: Any, **__: Any
) -> int:
    """Return the operations of one call of the operator, from the shapes of its arguments; padding is computed too.

    Args:
        qkv: [B, h, w, 3*C].
        qkv_bias: [3*C], or None.
        bias_table: [(2*window_size-1)**2, heads].
        window_size: tokens.
    """
    batch, height, width, channels = qkv
    windows = -(-height // window_size) * -(-width // window_size)
    return 2 * 2 * batch * windows * window_size**4 * channels // 3  # two products, of N x N x C each
