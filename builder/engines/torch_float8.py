"""Pairs of FP8 layers in an exported program: the product of the first writes what that of the second reads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from builder.engines import first_line
from builder.operators.cuda import CudaOperatorError, load_cuda_operator
from builder.operators.linear_e4m3 import (
    ACTIVATIONS,
    BIAS_TYPES,
    E4M3,
    E4M3_MAX,
    MULTIPLE,
    Activation,
    linear_e4m3,
)

Works = Callable[[Tensor, Tensor, Activation], bool]  # of an operator's weight and bias, and its activation
aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default, aten.flatten.using_ints)
# The activations that are joined with the product before them.
JOINED: dict[Any, Activation] = {aten.relu.default: "relu", aten.gelu.default: "gelu"}
# From the second `Float8Linear`'s rounding back to the first one's product, views aside.
_STEPS: tuple[Collection[Any], ...] = (
    {aten.to.dtype}, {aten.clamp.default}, {aten.mul.Tensor}, {aten.to.dtype}, JOINED, {aten._scaled_mm.default},
)  # fmt: skip  # one a line would hide that they are a chain
_CHECK = aten._assert_tensor_metadata.default  # of the type of a tensor
_NAMES = {number: name for name, number in ACTIVATIONS.items()}
ROWS_TRIED = 1024  # of a product, to see whether it can be joined


class Joining:
    """Tries on this GPU what `join_float8_layers` asks for, each kind once; what does not work stays unjoined."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], bool] = {}

    def __call__(self, weight: Tensor, bias: Tensor, activation: Activation) -> bool:
        """Return whether a layer of this shape and type can be joined, and tell why not."""
        kind = (*weight.shape, bias.dtype, activation)
        if kind not in self._known:
            try:
                load_cuda_operator()
                one = torch.ones((), device="cuda")
                rows = torch.zeros((ROWS_TRIED, weight.shape[1]), dtype=E4M3, device="cuda")
                zeros, nothing = (torch.zeros(each.shape, dtype=each.dtype, device="cuda") for each in (weight, bias))
                linear_e4m3(rows, zeros, nothing, one, one, one, activation)
                self._known[kind] = True
            except (CudaOperatorError, RuntimeError) as error:  # no nvcc, an older library, or cuBLASLt has none
                print(f"FP8 layers of {tuple(weight.shape)} with {activation} are not joined: {first_line(error)}")
                self._known[kind] = False
        return self._known[kind]


class _Pair(NamedTuple):
    """What is replaced, and with what."""

    between: list[Node]  # from the rounding back to the product, both included
    inputs: tuple[Any, ...]  # of the operator


def join_float8_layers(program: ExportedProgram, works: Works = lambda *_: True) -> int:
    """Make a product of E4M3 numbers, its ReLU or GELU and the next layer's rounding one operator, in place.

    It is done where nothing else reads what is between. That is then not rounded to half precision any more.

    Args:
        program: as `export_detector` returns it, with `Float8Linear` layers.
        works: tells whether the operator can do a pair, by tensors without content; others stay as they are.

    Returns:
        How many operators there are now.
    """
    joined = 0
    for node in list(program.graph.nodes):
        pair = _pair(node)  # now, since what is joined may be the input of the next pair
        if pair is not None and works(_value(pair.inputs[1]), _value(pair.inputs[2]), _NAMES[pair.inputs[-1]]):
            _join(pair)
            joined += 1
    if joined:
        program.graph.lint()
        program.graph_module.recompile()
    return joined


def _join(pair: _Pair) -> None:
    rounded, product = pair.between[0], pair.between[-1]
    graph, transposed = rounded.graph, product.args[1]
    with graph.inserting_before(rounded):
        joined = graph.call_function(torch.ops.codetr.linear_e4m3.default, pair.inputs)
    joined.meta = {**product.meta, "val": rounded.meta["val"]}
    rounded.replace_all_uses_with(joined)
    for node in pair.between:
        for check in list(node.users):  # nothing else is left
            graph.erase_node(check)
        graph.erase_node(node)
    if isinstance(transposed, Node) and not transposed.users:
        graph.erase_node(transposed)


def _pair(rounded: Node) -> _Pair | None:
    """Return the pair whose second rounding a node is."""
    if rounded.target is not aten.to.dtype:
        return None
    between = [rounded, *_before(rounded)]
    steps = [node for node in between if node.target not in VIEWS]
    if len(steps) != len(_STEPS) or any(node.target not in step for node, step in zip(steps, _STEPS, strict=True)):
        return None
    _, clamp, scaled, widened, activation, product = steps
    if (rounded.args[1:], clamp.args[1:], widened.args[1:]) != ((E4M3,), (-E4M3_MAX, E4M3_MAX), (torch.float32,)):
        return None
    inputs = _inputs(product, rounded, scaled.args[1], JOINED[activation.target])
    return None if inputs is None else _Pair(between, inputs)


def _before(node: Node) -> Iterator[Node]:
    """Yield the nodes before one, each the first input of the one after it and of no other, back to a product."""
    while node.target is not aten._scaled_mm.default and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
        if sum(user.target is not _CHECK for user in node.users) != 1:
            return
        yield node


def _inputs(product: Node, rounded: Node, factor: Any, activation: Activation) -> tuple[Any, ...] | None:
    """Return the operator's arguments; None where it does not do what a product does."""
    if product.kwargs or len(product.args) != 8:
        return None
    x, transposed, x_scale, weight_scale, bias, result_scale, dtype, fast = product.args
    if not isinstance(transposed, Node) or transposed.target is not aten.t.default or not isinstance(bias, Node):
        return None
    weight = transposed.args[0]
    (out, columns), sizes = _value(weight).shape, _value(rounded).shape
    fits = out % MULTIPLE == 0 and columns % MULTIPLE == 0 and len(sizes) == 2 and sizes[1] == out
    types = _value(x).dtype == _value(weight).dtype == E4M3 and _value(bias).dtype == dtype and dtype in BIAS_TYPES
    numbers = all(_is_number(each) for each in (x_scale, weight_scale, factor))
    if not (fits and types and numbers and result_scale is None and fast):
        return None
    return x, weight, bias, x_scale, weight_scale, factor, ACTIVATIONS[activation]


def _is_number(node: Any) -> bool:
    return isinstance(node, Node) and _value(node).dtype == torch.float32 and _value(node).numel() == 1


def _value(node: Any) -> Tensor:
    value: Tensor = node.meta["val"]
    return value
