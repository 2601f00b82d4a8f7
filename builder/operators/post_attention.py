"""Everything behind an encoder layer's deformable attention as one PyTorch operator, `torch.ops.codetr.post_attention`.

Output projection, residual and norm, feed-forward network, residual and norm; `post_attention_followed` also does the
products that the next layer begins with. Importing this module defines the operators with an implementation in plain
PyTorch that serves every device; on GPUs that of `plugin_src` takes precedence. Formula and order of the packed
weights: plugin_src/README.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from builder.operators.linear_e4m3 import to_e4m3
from builder.operators.post_attention_layer import (
    COLUMN_MULTIPLE,
    MAX_COLUMNS,
    WIDTH,
    Kind,
    Layer,
    Norm,
    Product,
    count_bytes,
    count_numbers,
    fault_of,
    unpack,
)

OPERATOR_NAME = "post_attention"
SCHEMA = (
    "post_attention(Tensor attended, Tensor residual, Tensor weights, Tensor vectors, int hidden, bool e4m3) -> Tensor"
)
FOLLOWED_NAME = "post_attention_followed"
FOLLOWED_SCHEMA = (
    "post_attention_followed(Tensor attended, Tensor residual, Tensor position, Tensor weights, Tensor vectors, "
    "int hidden, bool e4m3, int offsets, int logits) -> (Tensor, Tensor, Tensor, Tensor)"
)


def post_attention(
    attended: Tensor, residual: Tensor, weights: Tensor, vectors: Tensor, hidden: int, e4m3: bool
) -> Tensor:
    """Return the tokens that leave an encoder layer.

    Args:
        attended: float16 or bfloat16 [M, 256], what deformable attention returns, before its output projection.
        residual: as `attended`, the tokens that entered the layer.
        weights: uint8, by `pack`.
        vectors: float32, by `pack`.
        hidden: width of the feed-forward network, a multiple of 128 up to 2048.
        e4m3: whether its products are of E4M3 numbers.

    Returns:
        As `attended`.

    Raises:
        RuntimeError: a shape or a type does not fit, or on a GPU: it is not of compute capability 9.0.
    """
    tokens: Tensor = torch.ops.codetr.post_attention(attended, residual, weights, vectors, hidden, e4m3)
    return tokens


def post_attention_followed(
    attended: Tensor,
    residual: Tensor,
    position: Tensor,
    weights: Tensor,
    vectors: Tensor,
    hidden: int,
    e4m3: bool,
    offsets: int,
    logits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the tokens that leave an encoder layer, and what the next one's attention reads.

    Args:
        attended: as for `post_attention`, with those that follow but the last two.
        residual: float16 or bfloat16 [M, 256].
        position: as `residual`, added to the tokens for offsets and logits.
        weights: uint8, by `pack`.
        vectors: float32, by `pack`.
        hidden: a multiple of 128 up to 2048.
        e4m3: whether the feed-forward network's products are of E4M3 numbers.
        offsets: columns of the sampling offsets, a multiple of 32.
        logits: columns of the attention logits, a multiple of 32; with `offsets` 1024 at most.

    Returns:
        Tokens [M, 256], value [M, 256], offsets [M, `offsets`], logits [M, `logits`], of the type of `attended`.

    Raises:
        RuntimeError: as `post_attention`.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.codetr.post_attention_followed(
        attended, residual, position, weights, vectors, hidden, e4m3, offsets, logits
    )
    return found


def reference_post_attention(
    attended: Tensor, residual: Tensor, weights: Tensor, vectors: Tensor, hidden: int, e4m3: bool
) -> Tensor:
    """Compute `post_attention` in standard operators; what exports without it decompose to."""
    kind = _check(OPERATOR_NAME, attended, residual, None, weights, vectors, hidden, e4m3, 0, 0)
    return _tokens(attended, residual, unpack(weights, vectors, kind))


def reference_post_attention_followed(
    attended: Tensor,
    residual: Tensor,
    position: Tensor,
    weights: Tensor,
    vectors: Tensor,
    hidden: int,
    e4m3: bool,
    offsets: int,
    logits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `post_attention_followed` in standard operators."""
    kind = _check(FOLLOWED_NAME, attended, residual, position, weights, vectors, hidden, e4m3, offsets, logits)
    layer = unpack(weights, vectors, kind)
    assert layer.following is not None
    tokens = _tokens(attended, residual, layer)
    query = (tokens.float() + position.float()).to(tokens.dtype)
    inputs = (tokens, query, query)
    products = zip(inputs, layer.following, strict=True)
    value, found_offsets, found_logits = (_product(x, each).to(x.dtype) for x, each in products)
    return tokens, value, found_offsets, found_logits


def _tokens(attended: Tensor, residual: Tensor, layer: Layer) -> Tensor:
    dtype = attended.dtype
    x = _normed(residual.float() + _product(attended, layer.output), layer.norm1)
    if layer.scales is None:
        hidden = F.relu(_product(x.to(dtype), layer.first)).to(dtype)
        y = _product(hidden, layer.second)
    else:
        hidden = F.relu(_product(to_e4m3(x * layer.scales.x_factor), layer.first, layer.scales.first))
        y = _product(to_e4m3(hidden * layer.scales.hidden_factor), layer.second, layer.scales.second)
    return _normed(x.to(dtype).float() + y, layer.norm2).to(dtype)


def _product(x: Tensor, product: Product, scale: Tensor | float = 1.0) -> Tensor:
    """Return float32."""
    return scale * (x.float() @ product.weight.float().t()) + product.bias.float()


def _normed(x: Tensor, norm: Norm) -> Tensor:
    """Normalise float32, with an epsilon that may be a tensor."""
    x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias


def _check(
    name: str,
    attended: Tensor,
    residual: Tensor,
    position: Tensor | None,
    weights: Tensor,
    vectors: Tensor,
    hidden: int,
    e4m3: bool,
    offsets: int,
    logits: int,
) -> Kind:
    _expect(name, attended.dim() == 2, "attended must be a matrix")
    kind = Kind(attended.dtype, attended.shape[1], hidden, e4m3, offsets, logits)
    fault = fault_of(kind)
    _expect(name, fault is None, fault or "")
    _expect(name, position is None or min(offsets, logits) > 0, _NO_COLUMNS)
    for beside, tensor in (("residual", residual), ("position", position)):
        if tensor is not None:
            fits = tensor.dtype == attended.dtype and tensor.shape == attended.shape
            _expect(name, fits, f"{beside} must have the type and shape of attended")
    for packed, tensor, dtype, size in (
        ("weights", weights, torch.uint8, count_bytes(kind)),
        ("vectors", vectors, torch.float32, count_numbers(kind)),
    ):
        fits = tensor.dtype == dtype and tuple(tensor.shape) == (size,)
        _expect(name, fits, f"{packed} must be {size} numbers of {_NAMES[dtype]}, as pack returns them")
    return kind


_NAMES = {torch.uint8: "uint8", torch.float32: "float32"}
_NO_COLUMNS = f"offsets and logits must be multiples of {COLUMN_MULTIPLE} from {COLUMN_MULTIPLE} to {MAX_COLUMNS}"


def _expect(name: str, fits: bool, message: str) -> None:
    if not fits:
        raise RuntimeError(f"{name}: {message}")


def _fake(attended: Tensor, residual: Tensor, weights: Tensor, vectors: Tensor, hidden: int, e4m3: bool) -> Tensor:
    _check(OPERATOR_NAME, attended, residual, None, weights, vectors, hidden, e4m3, 0, 0)
    return attended.new_empty(attended.shape)


def _fake_followed(
    attended: Tensor,
    residual: Tensor,
    position: Tensor,
    weights: Tensor,
    vectors: Tensor,
    hidden: int,
    e4m3: bool,
    offsets: int,
    logits: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(FOLLOWED_NAME, attended, residual, position, weights, vectors, hidden, e4m3, offsets, logits)
    rows = attended.shape[0]
    tokens, value, *others = (attended.new_empty((rows, each)) for each in (WIDTH, WIDTH, offsets, logits))
    return tokens, value, others[0], others[1]


for _name, _schema, _reference, _fake_kernel in (
    (OPERATOR_NAME, SCHEMA, reference_post_attention, _fake),
    (FOLLOWED_NAME, FOLLOWED_SCHEMA, reference_post_attention_followed, _fake_followed),
):
    # The kernel's library takes any strides. Without this word Inductor makes a tensor that several calls read, such as
    # the position, once for each of them.
    torch.library.define(f"codetr::{_name}", _schema[_schema.index("(") :], tags=(torch.Tag.flexible_layout,))
    torch.library.impl(f"codetr::{_name}", "CompositeExplicitAutograd", _reference)
    torch.library.register_fake(f"codetr::{_name}", _fake_kernel)
