"""Values of a config file: how much of them it may make, and what it may calculate."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

from serving.errors import CodetrError

# Of all values that a config and its bases make, counted again wherever a name is used. Public ones make some ten
# thousand.
MAX_VALUES = 2_000_000
CHARACTERS = 16  # of a string that count as one value where it is used again
MAX_DEPTH = 100  # of lists and dicts in each other
MAX_BITS = 1024  # of an integer

_NUMBERS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
}


class ConfigFileError(CodetrError):
    """A config file that cannot be read; the message names file, line and what to do."""


class Unreadable(Exception):  # noqa: N818  # becomes a ConfigFileError where the file is known
    """Why a construct is refused, and in which line."""

    line: int | None = None


class Unknown:
    """Stands for a value of a base that was skipped."""

    def __init__(self, name: str) -> None:
        self.name = name


class Budget:
    """Counts what a config makes, so that a short file cannot fill the memory."""

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def spend(self, amount: int) -> None:
        """Count `amount` values or characters more; raises Unreadable where they are too many."""
        self.left -= amount
        if self.left < 0:
            raise Unreadable(f"makes more than {MAX_VALUES} values")

    def copy(self, value: Any, depth: int = 0) -> Any:
        """Return a copy that shares no list or dict with `value`, and count it."""
        self.spend(1 + len(value) // CHARACTERS if isinstance(value, str) else 1)
        if depth > MAX_DEPTH:
            raise Unreadable(f"nests deeper than {MAX_DEPTH} levels")
        if isinstance(value, dict):
            return {key: self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.copy(item, depth + 1) for item in value)
        return value


def combine(sign: ast.operator, left: Any, right: Any, budget: Budget) -> Any:
    """Return a sum, product or other combination of two values; raises Unreadable where no config needs it."""
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return _calculated(sign, left, right)
    if isinstance(sign, ast.Add) and type(left) is type(right) and isinstance(left, (str, list, tuple)):
        budget.spend(len(left) + len(right))
        return left + right
    if isinstance(sign, ast.Mult):
        return _repeated(left, right, budget) if isinstance(right, int) else _repeated(right, left, budget)
    if isinstance(sign, ast.Mod) and isinstance(left, str):
        return _formatted(left, right, budget)
    raise Unreadable(
        f"is {type(sign).__name__} of {type(left).__name__} and {type(right).__name__}, which no config needs"
    )


def _repeated(items: Any, count: Any, budget: Budget) -> Any:
    if not isinstance(count, int) or not isinstance(items, (str, list, tuple)):
        raise Unreadable(f"is a product of {type(items).__name__} and {type(count).__name__}")
    budget.spend(max(count, 0) * max(1, len(items)))
    return budget.copy(items * count)


def _formatted(text: str, values: Any, budget: Budget) -> str:
    """Return `text % values` where it has plain %s and %d alone."""
    given = values if isinstance(values, tuple) else (values,)
    if re.sub(r"%[sd%]", "", text).count("%") or not all(isinstance(each, (str, int, float)) for each in given):
        raise Unreadable("formats with more than %s and %d of strings and numbers")
    try:
        made = text % values
    except (TypeError, ValueError, ArithmeticError) as error:
        raise Unreadable(f"cannot be formatted: {error}") from error
    budget.spend(len(made))
    return made


def _calculated(sign: ast.operator, left: float, right: float) -> Any:
    if type(sign) not in _NUMBERS:
        raise Unreadable(f"is an operation ({type(sign).__name__}) that no config needs")
    if isinstance(sign, ast.Pow) and (abs(right) > MAX_BITS or abs(left) > MAX_VALUES):
        raise Unreadable("is too large a power")
    try:
        value = _NUMBERS[type(sign)](left, right)
    except (ArithmeticError, ValueError) as error:
        raise Unreadable(f"cannot be calculated: {error}") from error
    if isinstance(value, complex) or (isinstance(value, int) and value.bit_length() > MAX_BITS):
        raise Unreadable("is too large a number" if isinstance(value, int) else "is no real number")
    return value
