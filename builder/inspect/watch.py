"""PyTorch's own layers while they run: every module's tensors are seen, and can be exchanged, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class Tap(NamedTuple):
    """One tensor of PyTorch's run: the `number`-th floating-point tensor that a module returned, calls counted on."""

    module: str
    number: int

    def __str__(self) -> str:
        return self.module if self.number == 0 else f"{self.module} [{self.number}]"


# Given a tensor that a module returns, returns the one to go on with.
Visit = Callable[[Tap, Tensor], Tensor]
# Given the module, the number of the choice in it, the scores and the chosen places along dimension `dim`, returns the
# places to go on with.
Choose = Callable[[str, int, Tensor, Tensor, int], Tensor]


@contextmanager
def watched(detector: nn.Module, visit: Visit, choose: Choose) -> Iterator[None]:
    """Call `visit` for what each module of `detector` returns, and `choose` for each top-k, while the block runs.

    Modules end in the order of their depth: a parent after its children.
    """
    inside: list[str] = []
    numbers: Counter[str] = Counter()

    def begin(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            inside.append(name)

        return hook

    def end(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, given: Any, made: Any) -> Any:
            inside.pop()
            return tree_map(lambda value: _visit(name, value), made)

        return hook

    def _visit(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        tap = Tap(name, numbers[name])
        numbers[name] += 1
        return visit(tap, value)

    with ExitStack() as hooks:
        for name, module in detector.named_modules():
            if name:
                hooks.enter_context(module.register_forward_pre_hook(begin(name)))
                hooks.enter_context(module.register_forward_hook(end(name)))
        with _Choices(lambda: inside[-1] if inside else "", choose):
            yield


class _Choices(TorchDispatchMode):
    """Lets `choose` have the last word in every top-k."""

    def __init__(self, module: Callable[[], str], choose: Choose) -> None:
        super().__init__()
        self.module, self.choose, self.numbers = module, choose, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten.topk.default:
            return made
        scores, dim = args[0], args[2] if len(args) > 2 else -1
        module = self.module()
        places = self.choose(module, self.numbers[module], scores, made[1], dim)
        self.numbers[module] += 1
        return scores.gather(dim, places), places
