"""Evaluates the assignments of a Python config file by its syntax tree, and executes nothing of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.reading.config_values import COMPARISONS, SIGNS, Budget, Unknown, Unreadable, combine

# What a user would call the constructs that are met most.
_CONSTRUCTS: dict[type[ast.AST], str] = {
    ast.Import: "an import",
    ast.ImportFrom: "an import",
    ast.With: "a with block, as mmengine's pure Python configs have",
    ast.Call: "a call other than dict, list, tuple and range",
    ast.Attribute: "an attribute of anything but _base_",
    ast.ListComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.Lambda: "a function",
    ast.FunctionDef: "a function",
    ast.ClassDef: "a class",
    ast.For: "a loop",
    ast.While: "a loop",
    ast.If: "a condition",
    ast.IfExp: "a condition",
    ast.BoolOp: "a condition",
    ast.AugAssign: "a change of an earlier value",
    ast.Delete: "a change of an earlier value",
}
_TEMPLATE = re.compile(r"\{\{\s*(fileDirname|fileBasenameNoExtension|fileBasename|fileExtname)\s*\}\}")


class Evaluator:
    """The values of one file's assignments, in their order."""

    def __init__(self, path: Path, bases: Mapping[str, Any], is_complete: bool, budget: Budget) -> None:
        """Take the values of the file's bases, whether none of them was skipped, and what is left to make."""
        self.path, self.bases, self.is_complete, self.budget = path, bases, is_complete, budget
        self.names: dict[str, Any] = {}

    def run(self, statements: list[ast.stmt]) -> dict[str, Any]:
        """Return what the statements bind; raises Unreadable with the line."""
        for statement in statements:
            try:
                self._assign(statement)
            except Unreadable as error:
                error.line = error.line or statement.lineno
                raise
        return self.names

    def _assign(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Assign) and all(isinstance(each, ast.Name) for each in statement.targets):
            value = self.value(statement.value)
            for target in statement.targets:
                self.names[target.id] = self.budget.copy(value)  # type: ignore[attr-defined]
        elif not _is_comment(statement):
            raise _refused(statement)

    def value(self, node: ast.expr) -> Any:
        """Return the value of an expression."""
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        try:
            if method is None:
                raise _refused(node)
            return method(node)
        except Unreadable as error:
            error.line = error.line or node.lineno
            raise

    def _known(self, node: ast.expr) -> Any:
        """Return a value that is to be computed with."""
        value = self.value(node)
        if isinstance(value, Unknown):
            raise Unreadable(f"needs {value.name}, which is not known without its base")
        return value

    def _constant(self, node: ast.Constant) -> Any:
        value = node.value
        if not isinstance(value, (str, int, float, type(None))):
            raise Unreadable(f"holds {value!r}, which no config has")
        if isinstance(value, str):
            self.budget.spend(len(value))
            if re.search(r"\{\{\s*\$", value):
                raise Unreadable("asks for an environment variable")
            return self._named_file(value)
        return value

    def _named_file(self, text: str) -> str:
        path = self.path.absolute()
        parts = {
            "fileDirname": path.parent.as_posix(),
            "fileBasename": path.name,
            "fileBasenameNoExtension": path.stem,
            "fileExtname": path.suffix,
        }
        return _TEMPLATE.sub(lambda found: parts[found[1]], text)

    def _name(self, node: ast.Name) -> Any:
        if node.id == "_base_":
            return self.bases
        if node.id not in self.names:
            raise Unreadable(f"uses {node.id!r}, which no line before it binds")
        return self.budget.copy(self.names[node.id])

    def _attribute(self, node: ast.Attribute) -> Any:
        """Return `_base_.a.b`."""
        root: ast.expr = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if not isinstance(root, ast.Name) or root.id != "_base_":
            raise _refused(node)
        value = self.value(node.value)
        if isinstance(value, Unknown):
            return value
        if isinstance(value, Mapping) and node.attr in value:
            return self.budget.copy(value[node.attr])
        if self.is_complete:
            raise Unreadable(f"uses {ast.unparse(node)}, which the bases do not have")
        return Unknown(ast.unparse(node))

    def _subscript(self, node: ast.Subscript) -> Any:
        value, key = self._known(node.value), self._known(node.slice)
        try:
            return self.budget.copy(value[key])
        except (KeyError, IndexError, TypeError) as error:
            raise Unreadable(f"has no {key!r} in {ast.unparse(node.value)}") from error

    def _items(self, nodes: list[ast.expr]) -> list[Any]:
        items: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                several = self._known(node.value)
                if not isinstance(several, (list, tuple)):
                    raise Unreadable("spreads what is no list")
                items += several
            else:
                items.append(self.value(node))
        self.budget.spend(1 + len(items))
        return items

    def _list(self, node: ast.List) -> list[Any]:
        return self._items(node.elts)

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self._items(node.elts))

    def _set(self, node: ast.Set) -> Any:
        """Return a set, or what mmengine's template `{{_base_.a.b}}` stands for."""
        (inner,) = node.elts if len(node.elts) == 1 else (None,)
        if isinstance(inner, ast.Set) and len(inner.elts) == 1 and isinstance(inner.elts[0], ast.Attribute):
            return self.value(inner.elts[0])
        try:
            return {self._known(each) for each in node.elts}
        except TypeError as error:
            raise Unreadable(f"is no set: {error}") from error

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        return self._mapping([(None if key is None else self._known(key), key, value) for key, value in _pairs(node)])

    def _call(self, node: ast.Call) -> Any:
        """Return `dict(a=1, **b)`, `list(...)`, `tuple(...)` or `range(...)`."""
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name in self.names:
            raise _refused(node)
        if name == "dict" and len(node.args) < 2:
            given = self._mapping([(None, None, value) for value in node.args])
            return given | self._mapping([(each.arg, each.arg, each.value) for each in node.keywords], is_call=True)
        if name in ("list", "tuple", "range") and not node.keywords:
            return self._sequence(name, [self._known(each) for each in node.args])
        raise _refused(node)

    def _sequence(self, name: str, given: list[Any]) -> Any:
        """Return a list or a tuple of another, or the numbers of a range."""
        if (
            name == "range"
            and 1 <= len(given) <= 3
            and all(isinstance(each, int) for each in given)
            and given[2:] != [0]
        ):
            numbers = range(*given)
            self.budget.spend(max(0, (numbers.stop - numbers.start) // numbers.step + 1))
            return tuple(numbers)
        if name == "range" or len(given) > 1 or not all(isinstance(each, (list, tuple)) for each in given):
            raise Unreadable(f"is a {name}(...) of what is no list")
        items = given[0] if given else ()
        return list(items) if name == "list" else tuple(items)

    def _mapping(self, entries: list[tuple[Any, object, ast.expr]], is_call: bool = False) -> dict[Any, Any]:
        """Return the dict of (key, None where a whole dict is spread, value); a call has no key twice."""
        made: dict[Any, Any] = {}
        for key, is_pair, node in entries:
            if is_pair is not None:
                if not isinstance(key, (str, int, float, type(None))):
                    raise Unreadable(f"has the key {key!r}; expected a string")
                if is_call and key in made:
                    raise Unreadable(f"has {key} twice")
                made[key] = self.value(node)
                continue
            spread = self._known(node)
            if not isinstance(spread, Mapping):
                raise Unreadable("spreads what is no dict")
            twice = made.keys() & spread.keys()
            if is_call and twice:
                raise Unreadable(f"has {', '.join(map(str, twice))} twice")
            made.update(self.budget.copy(dict(spread)))
        self.budget.spend(1 + len(made))
        return made

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        value = self._known(node.operand)
        sign = SIGNS.get(type(node.op))
        if sign is None or (not isinstance(node.op, ast.Not) and not isinstance(value, (int, float))):
            raise Unreadable(f"is an operation on {type(value).__name__} that no config needs")
        return sign(value)

    def _compare(self, node: ast.Compare) -> bool:
        left = self._known(node.left)
        for sign, right_node in zip(node.ops, node.comparators, strict=True):
            right = self._known(right_node)
            compare = COMPARISONS.get(type(sign))
            if compare is None:
                raise _refused(node)
            try:
                if not compare(left, right):
                    return False
            except TypeError as error:
                raise Unreadable(f"cannot be compared: {error}") from error
            left = right
        return True

    def _binop(self, node: ast.BinOp) -> Any:
        return combine(node.op, self._known(node.left), self._known(node.right), self.budget)

    def _joinedstr(self, node: ast.JoinedStr) -> str:
        parts = []
        for each in node.values:
            if isinstance(each, ast.FormattedValue) and (each.format_spec is not None or each.conversion != -1):
                raise Unreadable("formats with more than a plain {name}")
            part = self._known(each.value if isinstance(each, ast.FormattedValue) else each)
            if not isinstance(part, (str, int, float, type(None))):
                raise Unreadable(f"formats a {type(part).__name__}; expected a string or a number")
            parts.append(str(part))
        self.budget.spend(sum(map(len, parts)))
        return "".join(parts)


def _refused(node: ast.AST) -> Unreadable:
    return Unreadable(f"is {_CONSTRUCTS.get(type(node), f'a construct ({type(node).__name__})')}")


def _pairs(node: ast.Dict) -> list[tuple[ast.expr | None, ast.expr]]:
    return list(zip(node.keys, node.values, strict=True))


def _is_comment(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
