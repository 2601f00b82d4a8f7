"""Reads what `torch.save` wrote without running anything the file names.

A pickle calls whatever it names. Here only what rebuilds tensors and plain containers is real; every other name, such
as those of a training history, an optimizer or a configuration, becomes a `StandIn`, which holds data and does nothing.
"""

from __future__ import annotations

import pickle
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class StandIn(dict[Any, Any]):
    """An object of a class that is not loaded: it takes every call of a pickle, and executes nothing."""

    origin = ""  # the name in the pickle, such as mmengine.logging.history_buffer.HistoryBuffer
    dtype = torch.uint8  # as the type of a storage that PyTorch's reader does not know: plain bytes
    state: Any = None  # what the pickle wanted to set on it

    def __new__(cls, *args: Any, **kwargs: Any) -> StandIn:  # noqa: D102  # as dict, whatever the arguments
        return dict.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __call__(self, *args: Any, **kwargs: Any) -> StandIn:  # noqa: D102  # as above
        return _stand_in(f"{self.origin}()")()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: object) -> None:
        """Take an item of a class that was a list."""

    add = extend = append

    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be a key
    __eq__ = object.__eq__

    @property
    def is_module(self) -> bool:
        """Whether it was a whole `torch.nn.Module`."""
        return isinstance(self.state, Mapping) and {"_parameters", "_modules"} <= self.state.keys()


class _Function:
    """A function that a pickle may call; unlike a Python function it has no attributes that a pickle could set."""

    __slots__ = ("_call", "_name")
    _call: Callable[..., Any]
    _name: str

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_call", call)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"the file tries to set {name} of {self._name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # as Python's functions
        if args and isinstance(args[0], StandIn):
            return _stand_in(self._name)()  # a tensor of a class that is not loaded
        return self._call(*args, **kwargs)


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    # Without what follows: whether it requires gradients, and hooks of the backward pass.
    rebuilt: Tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)
    return rebuilt


def _first(value: Any, *_: Any) -> Any:
    return value


def _subclass(function: Any, new_type: Any, args: Any, state: Any = None) -> Any:
    # The tensor itself, without its class and attributes.
    return function(*args) if isinstance(function, _Function) else _stand_in("torch._tensor._rebuild_from_type_v2")()


def _attribute(owner: Any, name: object, *_: Any) -> type[StandIn]:
    return _stand_in(f"{getattr(owner, 'origin', type(owner).__name__)}.{name}")


_REAL: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): _Function("torch.Size", tuple),
    **{
        ("builtins", kind.__name__): kind
        for kind in (set, frozenset, list, dict, tuple, int, float, complex, bool, str)
    },
    **{
        (module, name): _Function(f"{module}.{name}", function)
        for module, name, function in (
            ("torch._utils", "_rebuild_tensor", _tensor),
            ("torch._utils", "_rebuild_tensor_v2", _tensor),
            ("torch._utils", "_rebuild_parameter", _first),
            ("torch._utils", "_rebuild_parameter_with_state", _first),
            ("torch._tensor", "_rebuild_from_type_v2", _subclass),
            ("torch.nn.parameter", "Parameter", _first),
            ("torch.nn.parameter", "Buffer", _first),
            ("collections", "defaultdict", lambda factory=None, *items: dict(*items)),
            ("builtins", "getattr", _attribute),
        )
    },
}
_REAL |= {("__builtin__", name): real for (module, name), real in _REAL.items() if module == "builtins"}  # Python 2


def _stand_in(origin: str) -> type[StandIn]:
    return type(origin.rpartition(".")[2] or "StandIn", (StandIn,), {"origin": origin, "__module__": "stand_in"})


class _Unpickler(pickle.Unpickler):
    """A pickle reader in which every name but those of `_REAL` is a stand-in."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        """Return the object of a name, or a class that stands in for it."""
        real = _REAL.get((module_name, global_name))
        if real is None and module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype):
            return getattr(torch, global_name)
        return _stand_in(f"{module_name}.{global_name}") if real is None else real


# What `torch.load` asks of a pickle module.
_PICKLE = types.SimpleNamespace(
    __name__="pickle",
    Unpickler=_Unpickler,
    load=lambda file, **options: _Unpickler(file, **options).load(),
    UnpicklingError=pickle.UnpicklingError,
)


def load(path: Path) -> Any:
    """Return what `torch.save` wrote to `path`, zipped or not, on the CPU, with a `StandIn` for every foreign object.

    Raises anything: the file is cut short, damaged, or was not written by `torch.save`. TorchScript and tar files,
    which PyTorch reads by other code, must not be given.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about source code of pickled classes, which nobody loads
        return torch.load(path, map_location="cpu", pickle_module=_PICKLE, weights_only=False)
