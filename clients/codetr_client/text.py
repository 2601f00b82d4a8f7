"""Text from outside, such as names and messages: made fit to be shown, and read from files of any editor."""

from __future__ import annotations

import codecs
import re
import unicodedata

# Joiners within words of several scripts and within emoji.
_JOINERS = "\u200c\u200d"
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~]|(?<!\w)_|_(?!\w)")
# The longer marks first: UTF-32's begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def printable(text: object) -> str:
    """Return text with everything escaped that a terminal would not just show.

    Those are control characters, escape sequences and line breaks, marks that turn the direction of writing, and bytes
    of a file name that are no text.
    """
    return "".join(char if _is_shown(char) else char.encode("unicode_escape").decode() for char in str(text))


def _is_shown(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"


def markdown(text: object) -> str:
    """Return text as Markdown that shows it, also in a table's cell."""
    return _MARKDOWN.sub(r"\\\g<0>", printable(text))


def decode_text(content: bytes) -> str:
    """Return the text of a file: UTF-8, or what its byte order mark says, its lines ended as on Unix.

    Raises:
        ValueError: it is neither; says what it is not and what to do.
    """
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    name = encoding.removesuffix("-sig").upper()
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not {name} text (byte {error.start}); save it as UTF-8") from error
    if "\0" in text:  # UTF-16 without a mark, or no text at all
        raise ValueError(f"not {name} text (a null character at {text.index(chr(0))}); save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")
