"""Random encoder layers and tokens for `post_attention`, and the kinds of them that its tests go through."""

import pytest
import torch

from builder.operators.linear_e4m3 import E4M3_MAX, to_e4m3
from builder.operators.post_attention_layer import Following, Layer, Norm, Product, Scales

HALVES = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
FORMS = pytest.mark.parametrize("e4m3", [False, True], ids=["half", "E4M3"])
FOLLOWED = pytest.mark.parametrize("followed", [False, True], ids=["last", "followed"])
COLUMNS = (320, 160)  # of offsets and logits: Co-DINO's


def product(out, columns, half, device, std=1.0):
    weight = torch.randn(out, columns, device=device) * std / columns**0.5
    return Product(weight.to(half), torch.randn(out, device=device).to(half) * 0.1)


def norm(device, eps=1e-5):
    return Norm(1 + 0.1 * torch.randn(256, device=device), 0.1 * torch.randn(256, device=device), eps)


def in_e4m3(made):
    scale = made.weight.float().abs().amax() / E4M3_MAX
    return Product(to_e4m3(made.weight.float() / scale), made.bias), scale


def random_layer(hidden=256, half=torch.float16, e4m3=False, columns=None, device="cpu"):
    """Return a layer, followed if there are `columns`."""
    first, second, scales = product(hidden, 256, half, device), product(256, hidden, half, device, 1.5), None
    if e4m3:
        x_scale, hidden_scale = (torch.tensor(each / E4M3_MAX, device=device) for each in (5.0, 4.0))
        (first, scale1), (second, scale2) = in_e4m3(first), in_e4m3(second)
        scales = Scales(1 / x_scale, x_scale * scale1, 1 / hidden_scale, hidden_scale * scale2)
    following = columns and Following(*(product(each, 256, half, device) for each in (256, *columns)))
    output = product(256, 256, half, device)
    return Layer(output, norm(device), first, second, norm(device, 1e-3), scales, following)


def random_tokens(rows, half, device="cpu"):
    """Return `attended`, `residual` and `position`."""
    return [torch.randn(rows, 256, device=device).to(half) for _ in range(3)]
