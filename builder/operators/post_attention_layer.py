"""An encoder layer behind its attention as `post_attention` knows it, and its weights as the kernel reads them.

Order of the packed weights: plugin_src/README.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from builder.operators.linear_e4m3 import E4M3

TYPES = (torch.float16, torch.bfloat16)
WIDTH = 256  # of a token
HIDDEN_MULTIPLE, MAX_HIDDEN = 128, 2048
COLUMN_MULTIPLE, MAX_COLUMNS = 32, 1024  # of offsets and logits; the two together at most
BLOCK = 128  # columns of a projection, whose weights are packed together
SLICE = 64  # numbers of half precision in the 128 bytes of a packed row
PIECE_BYTES = 16384
SCALARS = 8


class Product(NamedTuple):
    """A linear layer."""

    weight: Tensor  # [out, in], of the tokens' type, or float8_e4m3fn in units of a scale
    bias: Tensor  # [out]


class Norm(NamedTuple):
    """A layer norm."""

    weight: Tensor  # [256]
    bias: Tensor  # [256]
    eps: Tensor | float


class Scales(NamedTuple):
    """Of a feed-forward network in E4M3; float32, one number each."""

    x_factor: Tensor  # what its input is multiplied by before it is rounded
    first: Tensor  # what the first product is multiplied by: the scale of the input times that of the weights
    hidden_factor: Tensor
    second: Tensor


class Following(NamedTuple):
    """The products with which the next layer begins."""

    value: Product  # 256 to 256
    offsets: Product  # 256 to a multiple of 32
    logits: Product  # as offsets


class Layer(NamedTuple):
    """What an encoder layer does behind its attention, and which products follow it."""

    output: Product  # 256 to 256
    norm1: Norm
    first: Product  # 256 to hidden, of the feed-forward network; with `scales` in E4M3, as `second`
    second: Product  # hidden to 256
    norm2: Norm
    scales: Scales | None = None
    following: Following | None = None


class Kind(NamedTuple):
    """What decides whether a kernel can do a layer."""

    dtype: torch.dtype  # of the tokens
    width: int
    hidden: int
    e4m3: bool
    offsets: int  # columns, 0 where nothing follows
    logits: int


Works = Callable[[Kind], bool]  # whether the operators can do layers of a kind, here


def kind_of(layer: Layer) -> Kind:
    """Return which kind a layer is, of tensors that need no content."""
    following = layer.following
    columns = (0, 0) if following is None else (len(following.offsets.weight), len(following.logits.weight))
    output = layer.output.weight
    return Kind(output.dtype, output.shape[0], layer.first.weight.shape[0], layer.scales is not None, *columns)


def fault_of(kind: Kind) -> str | None:
    """Return why no kernel can do layers of a kind, or None."""
    if kind.dtype not in TYPES:
        return "attended must be float16 or bfloat16"
    if kind.width != WIDTH:
        return f"tokens must have {WIDTH} channels, got {kind.width}"
    if not 0 < kind.hidden <= MAX_HIDDEN or kind.hidden % HIDDEN_MULTIPLE:
        return f"hidden must be a multiple of {HIDDEN_MULTIPLE} from {HIDDEN_MULTIPLE} to {MAX_HIDDEN}"
    columns = (kind.offsets, kind.logits)
    if any(columns):
        if not all(0 < each <= MAX_COLUMNS and each % COLUMN_MULTIPLE == 0 for each in columns):
            return f"offsets and logits must be multiples of {COLUMN_MULTIPLE} from {COLUMN_MULTIPLE} to {MAX_COLUMNS}"
        if sum(columns) > MAX_COLUMNS:
            return f"offsets and logits must be {MAX_COLUMNS} columns at most"
    return None


def pack(layer: Layer) -> tuple[Tensor, Tensor]:
    """Return weights and vectors in the order in which the kernel reads them.

    Args:
        layer: its tensors on one device; products in half precision of one type, but those that are in E4M3.

    Returns:
        `weights` uint8 [bytes] and `vectors` float32 [numbers].

    Raises:
        RuntimeError: the kernel cannot do such a layer.
    """
    kind = kind_of(layer)
    if (fault := fault_of(kind)) is not None:
        raise RuntimeError(f"post_attention: {fault}")
    following = layer.following
    parts = [_packed(layer.output.weight, _projection(WIDTH, in_registers=True))]
    first, second = _feed_forward(kind)
    chunks = [_packed(layer.first.weight, first), _packed(layer.second.weight, second)]
    parts.append(torch.cat([each.view(_chunks(kind), -1) for each in chunks], dim=1).flatten())
    if following is not None:
        sampling = torch.cat([following.offsets.weight, following.logits.weight])
        parts += [
            _packed(each, _projection(len(each), in_registers=False)) for each in (following.value.weight, sampling)
        ]
    return torch.cat(parts), _pack_vectors(layer)


def _pack_vectors(layer: Layer) -> Tensor:
    norm1, norm2, following = layer.norm1, layer.norm2, layer.following
    like = torch.empty(0, device=layer.output.bias.device)
    scales = layer.scales or (like.new_ones(()),) * 4
    scalars = [*scales, *(torch.as_tensor(each, device=like.device) for each in (norm1.eps, norm2.eps))]
    parts = [layer.output.bias, norm1.weight, norm1.bias, layer.first.bias, layer.second.bias, norm2.weight, norm2.bias]
    parts += [each.reshape(1) for each in scalars]
    parts.append(like.new_zeros(SCALARS - len(scalars)))
    if following is not None:
        parts += [following.value.bias, following.offsets.bias, following.logits.bias]
        columns = len(following.offsets.bias) + len(following.logits.bias)
        parts.append(like.new_zeros(_round_up(columns, BLOCK) - columns))
    return torch.cat([each.detach().float() for each in parts])


def unpack(weights: Tensor, vectors: Tensor, kind: Kind) -> Layer:
    """Return what `pack` packed, its biases and epsilons in float32."""
    _, _, hidden, e4m3, offsets, logits = kind
    dtype, columns = kind.dtype, _round_up(offsets + logits, BLOCK)
    sizes = [WIDTH * WIDTH * 2, 2 * WIDTH * hidden * (1 if e4m3 else 2)]
    sizes += [WIDTH * WIDTH * 2, WIDTH * columns * 2] if columns else []
    output, feed_forward, *others = weights.split(sizes)
    first, second = feed_forward.view(_chunks(kind), 2, -1).unbind(1)
    places = _feed_forward(kind)
    inside = E4M3 if e4m3 else dtype
    b_o, g1, n1, b1, b2, g2, n2, scalars, *biases = vectors.split(
        [WIDTH, WIDTH, WIDTH, hidden, WIDTH, WIDTH, WIDTH, SCALARS, *([WIDTH, columns] if columns else [])]
    )
    *scales, eps1, eps2 = scalars[:6].unbind()
    following = None
    if columns:
        value, sampling = (
            _unpacked(each, _projection(rows, in_registers=False), dtype, rows)
            for each, rows in zip(others, (WIDTH, columns), strict=True)
        )
        following = Following(
            Product(value, biases[0]),
            Product(sampling[:offsets], biases[1][:offsets]),
            Product(sampling[offsets : offsets + logits], biases[1][offsets : offsets + logits]),
        )
    return Layer(
        Product(_unpacked(output, _projection(WIDTH, in_registers=True), dtype, WIDTH), b_o),
        Norm(g1, n1, eps1),
        Product(_unpacked(first.flatten(), places[0], inside, hidden), b1),
        Product(_unpacked(second.flatten(), places[1], inside, WIDTH), b2),
        Norm(g2, n2, eps2),
        Scales(*scales) if e4m3 else None,
        following,
    )


def _packed(matrix: Tensor, places: Tensor) -> Tensor:
    """Return a matrix's bytes with its numbers at `places` in this order; zeros where it has no such row."""
    numbers = matrix.detach().contiguous().flatten().view(_NUMBERS[matrix.element_size()])
    numbers = F.pad(numbers, (0, places.numel() - numbers.numel()))
    return numbers[places.to(numbers.device).flatten()].view(torch.uint8)


def _unpacked(packed: Tensor, places: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
    """Return the matrix whose numbers were packed, with the rows that filled it up."""
    numbers = packed.contiguous().view(_NUMBERS[dtype.itemsize])
    order = places.to(numbers.device).flatten()
    return torch.zeros_like(numbers).scatter(0, order, numbers).view(dtype).view(rows, -1)


# Numbers of one size are moved as whole ones: not every operator knows E4M3.
_NUMBERS = {1: torch.uint8, 2: torch.int16}


def _projection(columns: int, *, in_registers: bool) -> Tensor:
    """Return where in a matrix [columns rounded up, 256] the numbers of its packed form come from.

    Args:
        columns: rows of the matrix.
        in_registers: the other operand is in registers, not in shared memory.
    """
    blocks, slices = torch.arange(_round_up(columns, BLOCK) // BLOCK), torch.arange(WIDTH // SLICE)
    row, position = _tile(BLOCK, 2)
    rows = _pi(BLOCK * blocks[:, None, None, None] + row)
    inside = SLICE * slices[:, None, None] + position
    return rows * WIDTH + (_pi(inside) if in_registers else inside)  # [blocks, slices, 128, 64]


def _feed_forward(kind: Kind) -> tuple[Tensor, Tensor]:
    """Return the same for the two products of a feed-forward network, chunk by chunk of the hidden numbers."""
    chunks = torch.arange(_chunks(kind))[:, None, None, None]
    blocks = torch.arange(2)[:, None, None]
    if kind.e4m3:
        row, position = _tile(BLOCK, 1)
        first = (BLOCK * chunks + row) * WIDTH + BLOCK * blocks + position  # [chunks, 2, 128, 128]
        second = _pi(BLOCK * blocks + row) * kind.hidden + BLOCK * chunks + _sigma(position)
        return first, second
    slices, halves = torch.arange(4)[:, None, None], torch.arange(2)[:, None, None, None]
    row, position = _tile(BLOCK, 2)
    first = (BLOCK * chunks + row) * WIDTH + SLICE * slices + position  # [chunks, 4, 128, 64]
    inside = BLOCK * chunks[..., None] + SLICE * halves + position
    second = _pi(BLOCK * blocks + row) * kind.hidden + inside  # [chunks, 2, 2, 128, 64]
    return first, second


def _chunks(kind: Kind) -> int:
    return kind.hidden // BLOCK


def _tile(rows: int, size: int) -> tuple[Tensor, Tensor]:
    """Return row [rows, 1] and position along K [rows, 128/size] of each number of a tile, by Hopper's swizzle."""
    row, number, group = torch.arange(rows)[:, None], torch.arange(128 // size)[None], 16 // size
    return row, (number // group ^ row % 8) * group + number % group


def _pi(n: Tensor) -> Tensor:
    """Return which column of 32 stands at n: each thread of a product gets eight that lie side by side."""
    return n - n % 32 + 8 * (n % 8 // 2) + 2 * (n % 32 // 8) + n % 2


def _sigma(p: Tensor) -> Tensor:
    """Return which hidden number of 32 stands at p, for a product's result as the next one's operand in E4M3."""
    return p - p % 32 + 8 * (2 * (p % 32 // 16) + p % 4 // 2) + 2 * (p % 16 // 4) + p % 2


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def count_bytes(kind: Kind) -> int:
    """Return the size of `weights`."""
    columns = _round_up(kind.offsets + kind.logits, BLOCK)
    following = WIDTH + columns if columns else 0
    return 2 * WIDTH * (WIDTH + following) + 2 * WIDTH * kind.hidden * (1 if kind.e4m3 else 2)


def count_numbers(kind: Kind) -> int:
    """Return the size of `vectors`."""
    columns = _round_up(kind.offsets + kind.logits, BLOCK)
    return 6 * WIDTH + kind.hidden + SCALARS + (WIDTH + columns if columns else 0)
