"""The JSON of an annotation file, whatever wrote it: byte order marks, UTF-16, gzip; and what other files are."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

from codetr_client.inputs import read_file
from serving.errors import CodetrError

_GZIP = b"\x1f\x8b"
# What files that are no JSON begin with.
_BEGINNINGS = {
    b"PK\x03\x04": "a zip archive; unpack it",
    b"<": "XML or HTML, which Pascal VOC and CVAT write; export COCO's JSON",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it",
}
# Outlines, key points and captions are no boxes, and are nine tenths of a large file's memory.
_UNREAD = ("segmentation", "keypoints", "caption", "attributes", "extra", "segments_info")


def read_json(path: Path) -> tuple[Any, str]:
    """Return the content of a JSON file without what no box needs, and its SHA-256.

    Raises:
        CodetrError: it cannot be read or is no JSON; names what it is instead.
    """
    try:
        data = read_file(path, None)
    except OSError as error:
        raise CodetrError(f"annotations {path}: {error.strerror}; name a COCO annotation file") from error
    digest = hashlib.sha256(data).hexdigest()
    try:
        text = _text(data)
        del data
        return json.loads(text, object_hook=_without_outlines), digest
    except _NotJsonError as error:
        raise CodetrError(f"{path} is no COCO annotation file: it is {error}") from error
    except json.JSONDecodeError as error:
        raise CodetrError(f"{path} is no COCO annotation file: {_place(text, error)}") from error
    except RecursionError as error:
        raise CodetrError(f"{path} is no COCO annotation file: it is nested too deeply") from error
    except ValueError as error:  # Python's only other reason
        raise CodetrError(f"{path} is no COCO annotation file: a number in it has thousands of digits") from error


class _NotJsonError(Exception):
    """What a file is instead."""


def _text(data: bytes) -> str:
    if data.startswith(_GZIP):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise _NotJsonError(f"a gzip file that is damaged or cut short ({error})") from error
    encoding = json.detect_encoding(data)  # by the byte order mark, else by where the zeros are
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        text = data.decode("latin-1")
        kind = _beginning(data)
        reason = f"not in {encoding.removesuffix('-sig').upper()} at byte {error.start}; save it as UTF-8"
        raise _NotJsonError(kind or reason) from error
    if not text.strip():
        raise _NotJsonError("empty")
    kind = _beginning(text.lstrip()[:8].encode(errors="replace"))
    if kind:
        raise _NotJsonError(kind)
    return text


def _beginning(data: bytes) -> str | None:
    return next((kind for beginning, kind in _BEGINNINGS.items() if data.startswith(beginning)), None)


def _place(text: str, error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data" and text[error.pos : error.pos + 1] in ("{", "["):
        return "it holds several JSON values, one a line perhaps (JSONL); expected one object"
    return f"it is no JSON at line {error.lineno}, column {error.colno}: {error.msg}"


def _without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
    for key in _UNREAD:
        entry.pop(key, None)
    return entry
