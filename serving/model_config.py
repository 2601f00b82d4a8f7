"""A model's `config.pbtxt` as plain values, read without protobuf, which a server's environment need not have."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.errors import CodetrError

# A comment, a string, a word or number, or a sign of protobuf's text format.
_TOKEN = re.compile(r"#[^\n]*|(\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|[\w.+-]+|[{}<>:,;\[\]])|\s+|(.)")
_QUOTES = "\"'"
_CLOSING = {"{": "}", "<": ">"}

Message = dict[str, list[Any]]  # every value of a field, in order; of messages again such dictionaries


def read_model_config(path: Path) -> Message:
    """Return the fields of a `config.pbtxt`.

    Raises:
        CodetrError: it is not protobuf's text format; names the file.
    """
    try:
        tokens = _tokens(path.read_text(encoding="utf-8"))
        return _message(tokens, "")
    except (OSError, StopIteration, RuntimeError, ValueError) as error:
        reason = str(error) or "it ends too early"
        raise CodetrError(f"{path} cannot be read as a model's configuration: {reason}") from error


def parameter(config: Message, key: str) -> str | None:
    """Return the text of a parameter, or None where it is not set."""
    for entry in config.get("parameters", []):
        if entry.get("key") == [key] and entry.get("value"):
            return str(entry["value"][0].get("string_value", [""])[0])
    return None


def instance_count(config: Message, gpus: int = 1) -> int:
    """Return how many instances of the model run where a server sees so many GPUs.

    A group has its count on each of them, but where it says which, or is of the CPU.
    """
    groups = config.get("instance_group", [])
    counts = [int(group.get("count", ["1"])[0]) for group in groups]
    places = [1 if group.get("kind") == ["KIND_CPU"] else len(group.get("gpus", [])) or gpus for group in groups]
    return sum(map(operator.mul, counts, places)) or 1


def with_field(text: str, message: str, field: str, value: int) -> str:
    """Return the text of a configuration with a number set in one of its messages, unless that is set already.

    Args:
        text: what `read_model_config` can read.
        message: name of a message at the top level that has fields.
        field: of the message.
        value: of the field.
    """
    depth, name = 0, ""
    for match in _TOKEN.finditer(text):
        token = match[1] or ""
        if depth == 0 and token == message:
            name = token
        elif token in _CLOSING:
            if depth == 0 and name == message:
                inside = _message(_tokens(text[match.end() :]), _CLOSING[token])
                return text if field in inside else f"{text[: match.end()]} {field}: {value}{text[match.end() :]}"
            depth += 1
        elif token in _CLOSING.values():
            depth -= 1
        elif token and token != ":":
            name = ""
    return text


def _tokens(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        if match[2]:
            raise ValueError(f"unexpected {match[2]!r} in line {text.count(chr(10), 0, match.start()) + 1}")
        if match[1]:
            yield match[1]


def _message(tokens: Iterator[str], closing: str) -> Message:
    fields: Message = {}
    for token in tokens:
        if token == closing:
            return fields
        if token in ",;" or token[0] in _QUOTES:  # a string in several pieces; the first is enough here
            continue
        if not re.fullmatch(r"\w+", token):
            raise ValueError(f"expected a field's name, got {token!r}")
        sign = next(tokens)
        fields.setdefault(token, []).extend(_values(tokens, next(tokens) if sign == ":" else sign))
    if closing:
        raise ValueError(f"a {closing!r} is missing")
    return fields


def _values(tokens: Iterator[str], token: str) -> list[Any]:
    if token in _CLOSING:
        return [_message(tokens, _CLOSING[token])]
    if token == "[":
        values: list[Any] = []
        while (token := next(tokens)) != "]":
            values += [] if token == "," else _values(tokens, token)
        return values
    if token in "}>:,;]":
        raise ValueError(f"expected a value, got {token!r}")
    return [token[1:-1] if token[0] in _QUOTES else token]  # escapes are kept; nothing that we read has any
