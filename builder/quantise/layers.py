"""The layers that take the place of quantised ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from builder.operators.linear_e4m3 import E4M3_MAX, to_e4m3
from builder.precision import Quantised
from builder.quantise.calibration import Range, Ranges
from builder.quantise.operator import PER_TENSOR, RANGES, Kind, fake_quantise

Layer = nn.Linear | nn.Conv2d
# The smallest scale that float16 has with all bits, and one whose products float32 has with all bits. Channels that a
# folded batch norm has made small need scales below the first.
SMALLEST_SCALE, SMALLEST_SCALE_FLOAT32 = 2.0**-14, 2.0**-60
LARGEST_BIAS = 2.0**30  # in units of input and weight: ONNX Runtime keeps it in 32 bits


class Rounding(nn.Module):
    """Rounds a tensor to INT8 or FP8 and back, with constant scales."""

    scale: Tensor

    def __init__(self, scale: Tensor, zero_point: int, axis: int, kind: Kind) -> None:
        super().__init__()
        self.zero_point, self.axis, self.kind = zero_point, axis, kind
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` rounded."""
        return fake_quantise(x, self.scale, self.zero_point, self.axis, self.kind)


def activation_rounding(values: Range, kind: Quantised, like: Tensor, symmetric: bool) -> Rounding:
    """Return the rounding of a tensor that takes `values`, in constants of the type and place of `like`."""
    if kind == "fp8" or symmetric:
        levels = RANGES["int8"][1] if kind == "int8" else E4M3_MAX
        scale = max(values.magnitude / levels, smallest_scale(like.dtype))
        return Rounding(like.new_full((1,), scale), 0, PER_TENSOR, kind)
    lowest, highest = RANGES["uint8"]
    scale = max((values.high - values.low) / (highest - lowest), smallest_scale(like.dtype))
    return Rounding(like.new_full((1,), scale), min(round(-values.low / scale), highest), PER_TENSOR, "uint8")


def smallest_scale(dtype: torch.dtype) -> float:
    """Return the smallest scale in constants of a type."""
    return SMALLEST_SCALE if dtype == torch.float16 else SMALLEST_SCALE_FLOAT32


def weight_rounding(layer: Layer, kind: Quantised, of_input: Rounding) -> Rounding:
    """Return the rounding of a layer's weights: INT8 with one scale for each output channel, FP8 with one for all."""
    weight = layer.weight.detach()
    if kind == "fp8":
        magnitude, axis, levels = weight.abs().amax().reshape(1), PER_TENSOR, E4M3_MAX
    else:
        magnitude, axis, levels = weight.flatten(1).abs().amax(1), 0, RANGES["int8"][1]
    scale = (magnitude.float() / levels).clamp(min=smallest_scale(weight.dtype))
    if kind == "int8" and layer.bias is not None:  # of a channel of nearly no weight it may be large
        scale = scale.maximum(layer.bias.detach().float().abs() / (of_input.scale.float() * LARGEST_BIAS))
    return Rounding(scale.to(weight.dtype), 0, axis, kind)


class QuantisedLinear(nn.Linear):
    """A linear layer whose input and weights are rounded, and its output where `of_output` is given."""

    def __init__(self, layer: nn.Linear, of_input: Rounding, of_weight: Rounding, of_output: Rounding | None) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.of_input, self.of_weight, self.of_output = of_input, of_weight, of_output

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_features] of `x` [..., in_features]."""
        y = F.linear(self.of_input(x), self.of_weight(self.weight), self.bias)
        return y if self.of_output is None else self.of_output(y)


class QuantisedConv2d(nn.Conv2d):
    """A convolution whose input and weights are rounded, and its output where `of_output` is given."""

    def __init__(self, layer: nn.Conv2d, of_input: Rounding, of_weight: Rounding, of_output: Rounding | None) -> None:
        super().__init__(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]  # a pair, which it became
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            device="meta",
        )
        self.weight, self.bias = layer.weight, layer.bias
        self.of_input, self.of_weight, self.of_output = of_input, of_weight, of_output

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of `x` [B, C, h, w]."""
        y = self._conv_forward(self.of_input(x), self.of_weight(self.weight), self.bias)
        return y if self.of_output is None else self.of_output(y)


class Float8Linear(nn.Module):
    """A linear layer as a scaled product of E4M3 numbers, for GPUs that have it.

    Input and weights have one calibrated scale each; the result has the type of the input.
    """

    weight: Tensor
    input_scale: Tensor
    input_factor: Tensor  # its inverse: a division takes a GPU longer than reading and writing the numbers
    weight_scale: Tensor

    def __init__(self, layer: nn.Linear, values: Range) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        weight_scale = (weight.abs().amax() / E4M3_MAX).clamp(min=SMALLEST_SCALE)
        input_scale = weight_scale.new_tensor(max(values.magnitude / E4M3_MAX, SMALLEST_SCALE))
        self.register_buffer("weight", to_e4m3(weight / weight_scale))  # [out, in]
        self.register_buffer("input_scale", input_scale)
        self.register_buffer("input_factor", 1 / input_scale)
        self.register_buffer("weight_scale", weight_scale)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out_features] of half-precision `x` [..., in_features]."""
        rounded = to_e4m3(x.flatten(0, -2).float() * self.input_factor)
        y = torch._scaled_mm(
            rounded,
            self.weight.t(),
            scale_a=self.input_scale,
            scale_b=self.weight_scale,
            bias=self.bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        return y.view(*x.shape[:-1], y.shape[-1])


def replace_layers(detector: nn.Module, replaced: Mapping[str, nn.Module]) -> None:
    """Put layers in the place of those with their names, in place."""
    for name, layer in replaced.items():
        parent, _, child = name.rpartition(".")
        setattr(detector.get_submodule(parent), child, layer)


def rounding_layers(
    layers: Mapping[str, Layer], ranges: Mapping[str, Ranges], kind: Quantised, symmetric: bool, outputs: bool
) -> dict[str, nn.Module]:
    """Return what takes the place of each layer, for ONNX.

    Args:
        layers: in the precision that the rest has.
        ranges: of each.
        kind: of the rounding.
        symmetric: whether INT8's zero is always 0.
        outputs: whether what leaves a convolution is rounded too, which ONNX Runtime needs to compute in integers.
    """
    made: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        of_input = activation_rounding(ranges[name].input, kind, layer.weight, symmetric)
        of_weight = weight_rounding(layer, kind, of_input)
        if isinstance(layer, nn.Linear):
            made[name] = QuantisedLinear(layer, of_input, of_weight, None)
        else:
            of_output = activation_rounding(ranges[name].output, kind, layer.weight, symmetric) if outputs else None
            made[name] = QuantisedConv2d(layer, of_input, of_weight, of_output)
    return made
