"""Options that have no effect beside others, or for the engine at hand."""

from __future__ import annotations

from serving.errors import CodetrError


def refuse_unused(why: str, /, *, advice: str = "leave it out", **given: object) -> None:
    """Refuse options that have no effect, so that nobody takes the result for that of what they name.

    Args:
        why: where they have none, as the end of a sentence that begins with "without effect".
        advice: what to do instead.
        given: each option by its name, `_` for `-`, with a value that counts as true if it was given.

    Raises:
        CodetrError: one was; the message names each.
    """
    unused = [f"--{option.replace('_', '-')}" for option, value in given.items() if value]
    if unused:
        raise CodetrError(f"{', '.join(unused)}: without effect{why}; {advice}")
