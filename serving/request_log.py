"""A line in the server's log for each request that a step refused or failed.

Triton writes the line, in its own format (`--log-format`) and to its own place (`--log-file`), and escapes it. What
comes from outside is escaped here already and cut short. No image content, no header and no parameter is written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from serving.errors import CodetrError

Style = Literal["text", "json", "off"]

_LONGEST = 200  # characters of one value
_PLAIN = re.compile(r"[\w.:/+-]+", re.ASCII)

Value = str | int | float | None


def chosen_style() -> Style:
    """Return how the environment variable CODETR_LOG wants the lines: as key=value, as one JSON object, or not at all.

    Raises:
        CodetrError: it wants something else.
    """
    wanted = os.environ.get("CODETR_LOG", "text")
    for style in get_args(Style):
        if wanted == style:
            return style
    raise CodetrError(f"CODETR_LOG: expected text, json or off, got {wanted!r}")


def write(log: Callable[[str], object], style: Style, fields: Mapping[str, Value]) -> None:
    """Hand one line of `fields` to a function of Triton's logger; those that are None are not known, and left out."""
    known = {key: _cut(value) for key, value in fields.items() if value is not None}
    if style == "json":
        log(json.dumps(known))
    elif style == "text":
        log(" ".join(f"{key}={_text(value)}" for key, value in known.items()))


def _cut(value: Value) -> Value:
    return value[:_LONGEST] if isinstance(value, str) else value


def _text(value: Value) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
