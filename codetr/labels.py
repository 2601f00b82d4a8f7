"""Files of class names: one name a line, in the order of the labels."""

from __future__ import annotations

from pathlib import Path

from codetr_client.contract import coco_class_names
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


def read_labels(labels: str | None) -> tuple[str, ...] | None:
    """Return the class names that `--labels` asks for: COCO's for 'coco', the lines of a file, or None for the own."""
    if labels is None:
        return None
    if labels == "coco":
        return coco_class_names()
    return tuple(read_class_names(Path(labels), "--labels", "expected a file with one name a line, or 'coco'"))


def names_for(labels: str | None, given: tuple[str, ...] | None, own: tuple[str, ...]) -> tuple[str, ...]:
    """Return the class names of a detector: those `given`, which `--labels` named, or its own without them.

    Raises:
        CodetrError: they are not as many as its own; where it tells none of its own they cannot be counted.
    """
    if given is None:
        return own
    if own and len(given) != len(own):
        raise CodetrError(f"--labels {labels}: {len(given)} names, and the detector has {len(own)} classes")
    return given
