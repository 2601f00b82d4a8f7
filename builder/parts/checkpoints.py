"""What families ask of the names and shapes in a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def renamed_once(key: str, renames: Iterable[tuple[str, str]]) -> str:
    """Return the key as the first pattern that fits renames it; the key itself where none does."""
    for pattern, name in renames:
        new, count = re.subn(pattern, name, key)
        if count:
            return new
    return key


def class_count(state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of renamed weights; None if they have no class head."""
    bias = state.get("class_head.bias")
    return None if bias is None or bias.dim() != 1 else len(bias)


def any_of(numbers: Iterable[int]) -> str:
    """Return the pattern of some numbers, which for none fits nothing."""
    return f"({'|'.join(map(str, numbers)) or '(?!)'})"


def first_difference(variant: str, settings: Iterable[tuple[str, object, object]]) -> str | None:
    """Return in one sentence which setting of a variant differs first in a checkpoint; None if none does.

    Args:
        variant: its name.
        settings: what each is called, the checkpoint's, or None where that does not tell, and the variant's.
    """
    for what, theirs, ours in settings:
        if theirs is not None and theirs != ours:
            return f"this checkpoint has {theirs} {what}, variant {variant!r} has {ours}"
    return None


def rows(state: Mapping[str, Tensor], key: str) -> int | None:
    """Return the rows of a weight; None where it is missing or has none."""
    return len(state[key]) if key in state and state[key].dim() else None


def count(state: Mapping[str, Tensor], pattern: str) -> int | None:
    """Return how many different numbers stand at a pattern's group; None for none."""
    numbers = {match[1] for key in state if (match := re.match(pattern, key))}
    return len(numbers) or None
