"""A linear layer of E4M3 numbers that ends in E4M3, as one PyTorch operator, `torch.ops.codetr.linear_e4m3`.

Bias, activation and the rounding for the next layer belong to the product, so nothing in half precision is written and
read between two such layers. Importing this module defines the operator with an implementation in plain PyTorch that
serves every device; on GPUs that of `plugin_src`, which calls cuBLASLt, takes precedence.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

OPERATOR_NAME = "linear_e4m3"
SCHEMA = (
    "linear_e4m3(Tensor x, Tensor weight, Tensor bias, Tensor x_scale, Tensor weight_scale, Tensor factor, "
    "int activation) -> Tensor"
)
Activation = Literal["none", "relu", "gelu"]
# Their numbers in the schema, which takes no word: PyTorch's stable ABI (2.13) loses the memory of each string.
ACTIVATIONS: dict[Activation, int] = {"none": 0, "relu": 1, "gelu": 2}
E4M3 = torch.float8_e4m3fn
E4M3_MAX = torch.finfo(E4M3).max
BIAS_TYPES = (torch.float16, torch.bfloat16)
MULTIPLE = 16  # of channels in and out, as cuBLASLt wants


def linear_e4m3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    factor: Tensor,
    activation: Activation,
) -> Tensor:
    """Multiply, add the bias, apply the activation, and round for the next layer.

    Args:
        x: float8_e4m3fn [M, K], in units of `x_scale`.
        weight: float8_e4m3fn [N, K], in units of `weight_scale`.
        bias: float16 or bfloat16 [N].
        x_scale: float32, one number, as are the other two.
        weight_scale: float32.
        factor: float32, the inverse of the unit of the result.
        activation: GELU is the approximation by tanh, which is cuBLASLt's: at most 4.8e-4 off, less than half a step of
            E4M3 but for inputs below -2.5, whose GELU is -0.015 to 0.

    Returns:
        float8_e4m3fn [M, N], the largest finite number in the place of larger ones.

    Raises:
        RuntimeError: a shape or a type does not fit, K or N is no multiple of 16, or on a GPU: it cannot multiply E4M3
            numbers, or cuBLASLt is not there or has no algorithm.
    """
    number = ACTIVATIONS[activation]
    rounded: Tensor = torch.ops.codetr.linear_e4m3(x, weight, bias, x_scale, weight_scale, factor, number)
    return rounded


def reference_linear_e4m3(
    x: Tensor, weight: Tensor, bias: Tensor, x_scale: Tensor, weight_scale: Tensor, factor: Tensor, activation: int
) -> Tensor:
    """Compute `linear_e4m3` in standard operators and float32; what exports without it decompose to."""
    _check(x, weight, bias, activation)
    y = x_scale * weight_scale * (x.float() @ weight.float().t()) + bias.float()
    if activation == ACTIVATIONS["relu"]:
        y = F.relu(y)
    elif activation == ACTIVATIONS["gelu"]:
        y = F.gelu(y, approximate="tanh")
    return to_e4m3(y * factor)


def to_e4m3(x: Tensor) -> Tensor:
    """Return `x` in float8_e4m3fn, the largest finite number in the place of larger ones."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)  # which itself may make NaN of what is larger


def _check(x: Tensor, weight: Tensor, bias: Tensor, activation: int) -> None:
    for name, matrix in (("x", x), ("weight", weight)):
        _expect(matrix.dtype == E4M3 and matrix.dim() == 2, f"{name} must be a float8_e4m3fn matrix")
    (N, K) = weight.shape
    _expect(x.shape[1] == K, "weight must have as many columns as x")
    _expect(N % MULTIPLE == K % MULTIPLE == 0 < N * K, "channels in and out must be positive multiples of 16")
    _expect(bias.dtype in BIAS_TYPES, "bias must be float16 or bfloat16")
    _expect(tuple(bias.shape) == (N,), "bias must have one number for each row of weight")
    _expect(activation in ACTIVATIONS.values(), "activation must be 0 (none), 1 (ReLU) or 2 (GELU)")


def _expect(fits: bool, message: str) -> None:
    if not fits:
        raise RuntimeError(f"{OPERATOR_NAME}: {message}")


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, x_scale: Tensor, weight_scale: Tensor, factor: Tensor, activation: int
) -> Tensor:
    _check(x, weight, bias, activation)
    return x.new_empty((x.shape[0], weight.shape[0]))


torch.library.define(f"codetr::{OPERATOR_NAME}", SCHEMA[SCHEMA.index("(") :])
torch.library.impl(f"codetr::{OPERATOR_NAME}", "CompositeExplicitAutograd", reference_linear_e4m3)
torch.library.register_fake(f"codetr::{OPERATOR_NAME}", _fake)
