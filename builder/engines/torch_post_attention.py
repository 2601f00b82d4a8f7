"""Whether `post_attention` can do encoder layers on this GPU: tried, not concluded."""

from __future__ import annotations

import torch
from torch import Tensor

from builder.engines import first_line
from builder.operators.cuda import CudaOperatorError, load_cuda_operator
from builder.operators.linear_e4m3 import E4M3_MAX, to_e4m3
from builder.operators.post_attention import (
    post_attention,
    post_attention_followed,
    reference_post_attention,
    reference_post_attention_followed,
)
from builder.operators.post_attention_layer import WIDTH, Following, Kind, Layer, Norm, Product, Scales, fault_of, pack

ROWS_TRIED = 1000  # the last tile of 128 is not full
# Relative, of all numbers of a tensor: rounding in another place loses 0.01 in bfloat16, a permutation 1.
LARGEST_ERROR = 0.05
INPUTS_WITHIN = 5.0  # what E4M3's scales are made for: the network's input is normalised


class Trying:
    """Tries each kind of layer once, and tells why one is not joined."""

    def __init__(self) -> None:
        self._known: dict[Kind, bool] = {}
        self._told: set[str] = set()
        self.joined = 0  # how often the answer was yes

    def __call__(self, kind: Kind) -> bool:
        """Return whether the operator can do layers of a kind."""
        if kind not in self._known:
            fault = fault_of(kind) or _fault_here(kind)
            if fault is not None and fault not in self._told:
                print(f"what follows the encoder's attention is not joined: {fault}")
                self._told.add(fault)
            self._known[kind] = fault is None
        self.joined += self._known[kind]
        return self._known[kind]


def _fault_here(kind: Kind) -> str | None:
    try:
        load_cuda_operator()
        errors = _errors(kind)
    except (CudaOperatorError, RuntimeError) as error:  # no nvcc, an older library, or another GPU
        return first_line(error)
    if all(error < LARGEST_ERROR for error in errors):  # not so if one is NaN
        return None
    return f"{kind.dtype} with {kind.hidden} hidden numbers is {max(errors):.2g} off PyTorch's result"


def _errors(kind: Kind, device: str = "cuda") -> list[float]:
    """Return how far the operator's results are from PyTorch's."""
    generator = torch.Generator(device).manual_seed(0)
    packed = (*pack(random_layer(kind, generator)), kind.hidden, kind.e4m3)
    attended, residual, position = (random_tokens(ROWS_TRIED, kind.dtype, generator) for _ in range(3))
    found: tuple[Tensor, ...]
    expected: tuple[Tensor, ...]
    if kind.offsets:
        inputs = (attended, residual, position, *packed, kind.offsets, kind.logits)
        found, expected = post_attention_followed(*inputs), reference_post_attention_followed(*inputs)
    else:
        found = (post_attention(attended, residual, *packed),)
        expected = (reference_post_attention(attended, residual, *packed),)
    pairs = [(a.float(), b.float()) for a, b in zip(found, expected, strict=True)]
    return [float((a - b).norm() / b.norm()) for a, b in pairs]


def random_tokens(rows: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return [rows, 256] of normal numbers where the generator is."""
    return torch.randn(rows, WIDTH, generator=generator, device=generator.device).to(dtype)


def random_layer(kind: Kind, generator: torch.Generator) -> Layer:
    """Return a layer of random weights where the generator is, whose branches are about as large as the residual."""
    first, second = (_product(*sides, kind, generator) for sides in ((kind.hidden, WIDTH), (WIDTH, kind.hidden)))
    scales = None
    if kind.e4m3:
        first, scale1 = _in_e4m3(first)
        second, scale2 = _in_e4m3(second)
        unit = scale1.new_tensor(INPUTS_WITHIN / E4M3_MAX)
        scales = Scales(1 / unit, unit * scale1, 1 / unit, unit * scale2)
    following = None
    if kind.offsets:
        following = Following(*(_product(each, WIDTH, kind, generator) for each in (WIDTH, kind.offsets, kind.logits)))
    output, norms = _product(WIDTH, WIDTH, kind, generator), [_norm(generator) for _ in range(2)]
    return Layer(output, norms[0], first, second, norms[1], scales, following)


def _product(out: int, columns: int, kind: Kind, generator: torch.Generator) -> Product:
    weight = torch.randn(out, columns, generator=generator, device=generator.device) / columns**0.5
    bias = 0.1 * torch.randn(out, generator=generator, device=generator.device)
    return Product(weight.to(kind.dtype), bias.to(kind.dtype))


def _norm(generator: torch.Generator) -> Norm:
    weight, bias = (0.1 * torch.randn(WIDTH, generator=generator, device=generator.device) for _ in range(2))
    return Norm(1 + weight, bias, 1e-5)


def _in_e4m3(product: Product) -> tuple[Product, Tensor]:
    scale = product.weight.float().abs().amax() / E4M3_MAX
    return Product(to_e4m3(product.weight.float() / scale), product.bias), scale
