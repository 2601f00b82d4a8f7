"""Rounding to INT8 or FP8 and back as one PyTorch operator, `torch.ops.codetr.fake_quantise`.

A quantised detector carries it in its graph, as it carries casts: eager PyTorch computes what the rounding does, and
ONNX gets a QuantizeLinear and a DequantizeLinear node, which TensorRT and ONNX Runtime turn into integer products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.export import ExportedProgram

from builder.precision import Quantised

SCHEMA = "fake_quantise(Tensor x, Tensor scale, int zero_point, int axis, str kind) -> Tensor"
RANGES = {"int8": (-128, 127), "uint8": (0, 255)}
E4M3_MAX = torch.finfo(torch.float8_e4m3fn).max
Kind = Literal["int8", "uint8", "fp8"]
PER_TENSOR = -1  # in the place of an axis


def fake_quantise(x: Tensor, scale: Tensor, zero_point: int, axis: int, kind: Kind) -> Tensor:
    """Return `x` rounded to what `kind` can hold in units of `scale`.

    Args:
        x: floating point, any shape.
        scale: floating point, [1] for `PER_TENSOR`, else one for each of `x`'s entries along `axis`.
        zero_point: what an integer holds for 0; 0 for FP8, and for TensorRT.
        axis: of the scales, or `PER_TENSOR`.
        kind: "int8", "uint8", which ONNX Runtime wants on x86, or "fp8", which is E4M3.

    Returns:
        As `x`, in its type.
    """
    rounded: Tensor = torch.ops.codetr.fake_quantise(x, scale, zero_point, axis, kind)
    return rounded


def quantised_to(program: ExportedProgram) -> Quantised | None:
    """Return what the operators of a program round to; None where it has none."""
    operator = torch.ops.codetr.fake_quantise.default
    kinds = {node.args[4] for node in program.graph.nodes if node.target is operator}
    return None if not kinds else "fp8" if "fp8" in kinds else "int8"


def _implementation(x: Tensor, scale: Tensor, zero_point: int, axis: int, kind: str) -> Tensor:
    scales = scale.float()
    if axis != PER_TENSOR:
        scales = scales.view([-1 if i == axis else 1 for i in range(x.dim())])
    units = x.float() / scales
    if kind == "fp8":
        rounded = units.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()
    else:
        rounded = (units.round() + zero_point).clamp(*RANGES[kind]) - zero_point
    return (rounded * scales).to(x.dtype)


def _fake(x: Tensor, scale: Tensor, zero_point: int, axis: int, kind: str) -> Tensor:
    return torch.empty_like(x)


def _nodes(x: Any, scale: Any, zero_point: int, axis: int, kind: str) -> Any:
    """Translate the operator to ONNX: QuantizeLinear and DequantizeLinear, with a zero point that tells the type."""
    from onnx import TensorProto, helper
    from onnxscript import opset18

    ops: Any = opset18  # whose methods are typed for values, which tensors become when they are recorded
    types = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "fp8": TensorProto.FLOAT8E4M3FN}
    if axis == PER_TENSOR:
        none = helper.make_tensor("none", TensorProto.INT64, [0], [])
        scale = ops.Reshape(scale, ops.Constant(value=none))
    shape = [int(size) for size in scale.shape] if axis != PER_TENSOR else []
    zeros = helper.make_tensor("zero_point", types[kind], shape, [zero_point] * math.prod(shape))
    constant = ops.Constant(value=zeros)
    quantised = ops.QuantizeLinear(x, scale, constant, axis=max(axis, 0))
    return ops.DequantizeLinear(quantised, scale, constant, axis=max(axis, 0))


torch.library.define("codetr::fake_quantise", SCHEMA[SCHEMA.index("(") :])
torch.library.impl("codetr::fake_quantise", "CompositeExplicitAutograd", _implementation)
torch.library.register_fake("codetr::fake_quantise", _fake)
TRANSLATIONS: Mapping[Any, Callable[..., Any]] = {torch.ops.codetr.fake_quantise.default: _nodes}
