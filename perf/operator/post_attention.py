"""How fast and how exact the operator behind an encoder layer's attention is on this GPU, beside those it replaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from builder.engines.torch_post_attention import random_layer, random_tokens
from builder.operators.cuda import load_cuda_operator
from builder.operators.linear_e4m3 import linear_e4m3, to_e4m3
from builder.operators.post_attention import post_attention, post_attention_followed
from builder.operators.post_attention_layer import WIDTH, Following, Kind, Layer, Norm, Product, kind_of, pack
from perf.machine import summary
from perf.operator.run import (
    HEADS,
    IMAGE_SIZES,
    LAUNCHES,
    POINTS,
    TYPES,
    copy_bandwidth,
    level_sizes,
    run_cases,
    time_calls,
)
from perf.tables import markdown_table

Design = Literal["ours", "separate operators"]
DESIGNS: tuple[Design, ...] = ("ours", "separate operators")
CAPABILITY = (9, 0)  # the only one that has it
HIDDEN, LEVELS = 2048, 5  # Co-DINO's
SAMPLES = HEADS * LEVELS * POINTS  # of a query
CHECKED = 4096  # rows, whose errors are looked at

Call = Callable[[Tensor, Tensor, Tensor], "tuple[Tensor, ...]"]  # of what was attended, residual and position


@dataclass(frozen=True)
class PostAttentionCase:
    """One layer: its time, and its error against float64."""

    design: Design
    dtype: str  # of the tokens
    e4m3: bool  # whether the feed-forward network is
    followed: bool  # by the next layer's products
    height: int  # of the image
    width: int
    rows: int
    microseconds: float
    spread: float  # relative
    error: float  # relative, against float64 on the same weights and inputs: of the tensor that is worst
    compulsory_bytes: int  # every input read once, every output written once, the weights read once
    operations: int  # of the products


def measurable() -> bool:
    """Return whether this GPU has the operator."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() == CAPABILITY


def run(output: Path, on_case: Callable[[PostAttentionCase], None], seed: int | None = None) -> dict[str, Any]:
    """Measure every case, write `post_attention.json` and `post_attention.md` to `output`, return the JSON's content.

    The arguments and errors are those of `perf.operator.run.run`.
    """
    load_cuda_operator()
    figures = {"copy_bytes_per_s": copy_bandwidth(), "checked_rows": CHECKED}
    return run_cases("post_attention", measure, on_case, figures, to_markdown, output, seed)


def measure() -> Iterator[PostAttentionCase]:
    """Yield the cases: in FP16 and with E4M3, followed and not, both designs side by side at every image size."""
    for e4m3 in (False, True):
        for followed in (True, False):
            for size in IMAGE_SIZES:
                for design in DESIGNS:
                    yield measure_case(design, "float16", e4m3, followed, size)


def measure_case(design: Design, dtype: str, e4m3: bool, followed: bool, size: tuple[int, int]) -> PostAttentionCase:
    """Measure one design on fresh random weights and inputs for an image of `size` (height, width)."""
    columns = (2 * SAMPLES, SAMPLES) if followed else (0, 0)
    kind = Kind(TYPES[dtype], WIDTH, HIDDEN, e4m3, *columns)
    generator = torch.Generator("cuda").manual_seed(int(torch.randint(2**31, ())))
    layer, rows = random_layer(kind, generator), sum(h * w for h, w in level_sizes(*size))
    inputs = [random_tokens(rows, kind.dtype, generator) for _ in range(3)]
    call = CALLS[design](layer)
    out = call(*inputs)
    error = max(relative_errors(layer, inputs, out, torch.randperm(rows)[:CHECKED].to("cuda")))
    read = inputs if followed else inputs[:2]
    moved = sum(each.nbytes for each in (*read, *out, *pack(layer)))
    time = time_calls([partial(call, *inputs)], LAUNCHES)
    return PostAttentionCase(
        design, dtype, e4m3, followed, *size, rows, time.median, time.spread, error, moved, operations(kind, rows)
    )


def operations(kind: Kind, rows: int) -> int:
    """Return multiplications and additions of a layer's products."""
    columns = WIDTH + kind.offsets + kind.logits if kind.offsets else 0
    return 2 * rows * WIDTH * (WIDTH + 2 * kind.hidden + columns)


def ours(layer: Layer) -> Call:
    """Return the one operator for a layer."""
    kind = kind_of(layer)
    packed = (*pack(layer), kind.hidden, kind.e4m3)
    if not kind.offsets:
        return lambda attended, residual, position: (post_attention(attended, residual, *packed),)
    columns = (kind.offsets, kind.logits)
    return lambda attended, residual, position: post_attention_followed(attended, residual, position, *packed, *columns)


def compiled(layer: Layer) -> Call:
    """Return the operators that the torch engine has for a layer otherwise, compiled by Inductor as it does."""
    from builder.engines.torch_passes import ReLUInProduct

    def call(attended: Tensor, residual: Tensor, position: Tensor) -> tuple[Tensor, ...]:
        return separate(layer, attended, residual, position)

    torch._dynamo.reset()  # it gives a function up that was compiled for eight sizes
    options: dict[str, Any] = {"post_grad_custom_post_pass": ReLUInProduct(), "shape_padding": False}
    return torch.compile(call, dynamic=False, options=options)


def separate(layer: Layer, attended: Tensor, residual: Tensor, position: Tensor) -> tuple[Tensor, ...]:
    """Compute a layer as Co-DINO's encoder, and in E4M3 the engine's pair of products, do."""
    x = _normed(residual + _linear(attended, layer.output), layer.norm1)
    tokens = _normed(x + _feed_forward(x, layer), layer.norm2)
    if layer.following is None:
        return (tokens,)
    query = tokens + position
    pairs = zip((tokens, query, query), layer.following, strict=True)
    return (tokens, *(_linear(each, product) for each, product in pairs))


def _feed_forward(x: Tensor, layer: Layer) -> Tensor:
    if layer.scales is None:
        return _linear(F.relu(_linear(x, layer.first)), layer.second)
    scales, one = layer.scales, torch.ones_like(layer.scales.first)
    rounded = to_e4m3(x.float() * scales.x_factor)
    hidden = linear_e4m3(rounded, *layer.first, scales.first, one, scales.hidden_factor, "relu")
    return torch._scaled_mm(
        hidden,
        layer.second.weight.t(),
        scale_a=scales.second,
        scale_b=one,
        bias=layer.second.bias,
        out_dtype=x.dtype,
        use_fast_accum=True,
    )


def _linear(x: Tensor, product: Product) -> Tensor:
    return F.linear(x, product.weight, product.bias)


def _normed(x: Tensor, norm: Norm) -> Tensor:
    wide = x.to(norm.weight.dtype)  # float32, or float64 as all the rest
    return F.layer_norm(wide, (WIDTH,), norm.weight, norm.bias, float(norm.eps)).to(x.dtype)


CALLS: dict[Design, Callable[[Layer], Call]] = {"ours": ours, "separate operators": compiled}


def relative_errors(layer: Layer, inputs: list[Tensor], out: tuple[Tensor, ...], rows: Tensor) -> list[float]:
    """Return |out - exact| / |exact| of some rows of each output, the exact ones in float64; NaN stays NaN."""
    wanted = separate(in_float64(layer), *(each[rows].double() for each in inputs))
    pairs = [(found[rows].double(), exact) for found, exact in zip(out, wanted, strict=True)]
    return [float((found - exact).norm() / exact.norm()) for found, exact in pairs]


def in_float64(layer: Layer) -> Layer:
    """Return a layer with weights in float64, those in E4M3 as the numbers that they stand for."""

    def product(given: Product, scale: Tensor | float = 1.0) -> Product:
        return Product(given.weight.double() * scale, given.bias.double())

    def norm(given: Norm) -> Norm:
        return Norm(given.weight.double(), given.bias.double(), given.eps)

    first_scale: Tensor | float = 1.0
    second_scale: Tensor | float = 1.0
    if layer.scales is not None:
        x_factor, first, hidden_factor, second = (each.double() for each in layer.scales)
        first_scale, second_scale = x_factor * first, hidden_factor * second
    following = None if layer.following is None else Following(*map(product, layer.following))
    return Layer(
        product(layer.output),
        norm(layer.norm1),
        product(layer.first, first_scale),
        product(layer.second, second_scale),
        norm(layer.norm2),
        following=following,
    )


def to_markdown(record: dict[str, Any]) -> str:
    """Return the result file as Markdown."""
    rows = []
    for case in record["cases"]:
        seconds = case["microseconds"] * 1e-6
        rows.append([
            f"{case['design']} {'E4M3' if case['e4m3'] else case['dtype']}", "yes" if case["followed"] else "",
            f"{case['height']}x{case['width']}", str(case["rows"]),
            f"{case['microseconds']:.1f} ± {case['spread']:.1%}", f"{case['error']:.1e}",
            f"{case['operations'] / seconds / 1e12:.0f}",
            f"{case['compulsory_bytes'] / seconds / record['copy_bytes_per_s']:.0%}",
        ])  # fmt: skip
    columns = ("call", "followed", "image", "tokens", "µs a layer", "error", "TFLOP/s", "of copy bandwidth")
    return "\n".join([
        "# Behind an encoder layer's attention", "",
        f"{summary(record['machine'])}, CUDA {record['cuda']}; {record['time']}.", "",
        f"256 channels, {HIDDEN} hidden ones, {2 * SAMPLES} offsets and {SAMPLES} logits where the next layer's "
        "products follow. Separate operators: as the torch engine has them, compiled by Inductor with its pass that "
        "puts ReLU into the product; in E4M3 `linear_e4m3` and a scaled product. Medians of CUDA graph replays. Error: "
        f"relative, against float64 on the same weights and inputs, of {record['checked_rows']} rows of the worst "
        "output.",
        "", markdown_table(columns, rows), "",
    ])  # fmt: skip
