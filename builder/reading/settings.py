"""What a reader of configs knows of settings: a rule for every key of every dict it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from builder.family import VariantError

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Only:
    """A setting with a choice of values; `default` is upstream's, by default the first value."""

    values: tuple[Any, ...]
    default: Any


@dataclass(frozen=True)
class Is:
    """A setting that is read: one whole number, one number, or several whole numbers."""

    kind: Literal["whole number", "number", "list of whole numbers"]
    optional: bool = False

    def accepts(self, value: object) -> bool:
        """Whether `value` is of this kind and positive, or None where that stands for upstream's default."""
        if value is None:
            return self.optional
        if self.kind == "list of whole numbers":
            return isinstance(value, tuple) and all(_is_whole(each) and each >= 0 for each in value)
        if self.kind == "number":
            return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        return _is_whole(value) and value > 0


class Free:
    """A setting that decides nothing at inference, or that is read elsewhere and checked there."""


Rules = Mapping[str, "Only | Is | Free | Rules"]
REQUIRED = object()  # as `default`: upstream has none


def only(*values: Any, default: Any = None) -> Only:
    """Return the rule for one of `values`; a `default` of None means the first of them."""
    return Only(values, values[0] if default is None else default)


def check(section: object, rules: Rules, path: str = "") -> None:
    """Check every setting of a dict, and of the dicts within it.

    Raises:
        VariantError: a setting is unknown, or has a value that this network does not implement.
    """
    if not isinstance(section, Mapping):
        raise VariantError(f"{path.rstrip('.') or 'model'}={short(section)} is not supported; expected a dict")
    for key, value in section.items():
        if key not in rules:
            raise VariantError(
                f"{path}{key}={short(value)} is a setting this reader does not know; remove it if it matters in "
                "training only, else this network does not implement it"
            )
    for key, rule in rules.items():
        _check_one(section, key, rule, path + key)


def _check_one(section: Config, key: str, rule: Only | Is | Free | Rules, path: str) -> None:
    if isinstance(rule, Only):
        value = section.get(key, rule.default)
        if value is REQUIRED:
            raise VariantError(f"the config has no {path!r}; expected {_choices(rule)}")
        if not any(_same(value, choice) for choice in rule.values):
            said = "" if key in section else " (the default)"
            raise VariantError(f"{path}={short(value)}{said} is not supported; expected {_choices(rule)}")
    elif isinstance(rule, Is):
        if key in section and not rule.accepts(section[key]):
            raise VariantError(f"{path}={short(section[key])} is not possible; expected a positive {rule.kind}")
    elif isinstance(rule, Mapping) and key in section:
        # mmcv takes one dict for each feed-forward network of a layer.
        check(single(section[key]) if key == "ffn_cfgs" else section[key], rule, path + ".")


def single(value: Any) -> Any:
    """Return the only element of a list, or `value` itself: mmdetection accepts both for many dicts."""
    return value[0] if isinstance(value, tuple) and len(value) == 1 else value


def short(value: object) -> str:
    """Return how a value reads in a message of one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _choices(rule: Only) -> str:
    return " or ".join(repr(choice) for choice in rule.values)


def _same(value: object, choice: object) -> bool:
    """Whether two settings are equal; True is not 1 here, but 2.0 is 2."""
    return isinstance(value, bool) == isinstance(choice, bool) and value == choice


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def free(*keys: str) -> Rules:
    """Return the rules of settings that decide nothing here."""
    return dict.fromkeys(keys, FREE)


FREE = Free()
WHOLE, NUMBER, WHOLES = Is("whole number"), Is("number"), Is("list of whole numbers")
