"""The precisions of weights and matrix products, by PyTorch's names and by those of the command line."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "float16", "bfloat16"]

# By what options call them.
PRECISIONS: dict[str, Precision] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def option_of(precision: Precision) -> str:
    """Return what options call a precision."""
    return next(option for option, each in PRECISIONS.items() if each == precision)
