"""Files of class names: one name a line, in the order of the labels."""

from __future__ import annotations

from pathlib import Path

from codetr_client.inputs import read_file
from codetr_client.text import decode_text
from serving.errors import CodetrError

_MOST_BYTES = 16 << 20  # of a file of class names


def read_class_names(file: Path, option: str, expected: str = "expected a file with one name a line") -> list[str]:
    """Return the names in `file`, which the command's `option` gave.

    Raises:
        CodetrError: it cannot be read, it is empty, or a line of it is; the message holds `option` and `expected`.
    """
    try:
        text = decode_text(read_file(file, _MOST_BYTES))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CodetrError(f"{option} {file}: {reason}; {expected}") from error
    names = [line.strip() for line in text.rstrip().split("\n")]
    if not all(names) or not names:
        raise CodetrError(f"{option} {file}: line {names.index('') + 1 if names else 1} is empty; {expected}")
    return names
