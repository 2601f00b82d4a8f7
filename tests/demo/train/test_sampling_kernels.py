from __future__ import annotations

import pytest
import torch

from builder.operators.ms_deform_attn import ms_deform_attn, reference_ms_deform_attn

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("masked", [True, False])
def test_kernels_equal_the_reference(coordinates: int, masked: bool) -> None:
    from demo.train.sampling_kernels import triton_kernels

    torch.manual_seed(0)
    shapes, B, Q = [6, 9, 3, 5], 2, 19
    valid = torch.tensor([[[6, 9], [3, 5]], [[4, 7], [2, 4]]], dtype=torch.int32, device="cuda") if masked else None
    value, references = torch.randn(B, 69, 2, 32, device="cuda"), torch.rand(B, Q, 2, coordinates, device="cuda")
    offsets, logits = torch.randn(B, Q, 2, 2, 4, 2, device="cuda") * 2, torch.randn(B, Q, 2, 2, 4, device="cuda")
    grad = torch.randn(B, Q, 64, device="cuda")
    leaves = [x.requires_grad_() for x in (value, references, offsets, logits)]
    out = reference_ms_deform_attn(value, references, offsets, logits, shapes, valid)
    expected = [out, *torch.autograd.grad(out, leaves, grad)]
    with triton_kernels():
        out = ms_deform_attn(value, references, offsets, logits, shapes, valid)
        got = [out, *torch.autograd.grad(out, leaves, grad)]
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
