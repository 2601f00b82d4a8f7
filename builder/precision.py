"""The precisions of weights and matrix products, by PyTorch's names and by those of the command line."""

from __future__ import annotations

from typing import Literal

Precision = Literal["float32", "float16", "bfloat16"]
# Of chosen layers; the rest of the network has one of the others.
Quantised = Literal["int8", "fp8"]
EnginePrecision = Literal["float32", "float16", "bfloat16", "int8", "fp8"]

# By what options call them.
PRECISIONS: dict[str, Precision] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
ENGINE_PRECISIONS: dict[str, EnginePrecision] = {**PRECISIONS, "int8": "int8", "fp8": "fp8"}


def option_of(precision: EnginePrecision) -> str:
    """Return what options call a precision."""
    return next(option for option, each in ENGINE_PRECISIONS.items() if each == precision)
