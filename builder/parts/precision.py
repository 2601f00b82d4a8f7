"""A network's precision: products in one type, while what must stay float32 keeps its exact weights."""

from __future__ import annotations

import torch
from torch import nn


def convert(module: nn.Module, dtype: torch.dtype, kept: tuple[type[nn.Module], ...]) -> None:
    """Convert parameters and buffers to `dtype`, those of the classes `kept` to at least float32.

    They are never rounded on the way: a variance of 1e-7 would be 1.2e-7 after a visit in float16.
    """
    if isinstance(module, kept):
        module.to(torch.promote_types(dtype, torch.float32))
        return
    for child in module.children():
        convert(child, dtype, kept)
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
