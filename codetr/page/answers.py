"""One picture's answer as the page gets it: detections, also as COCO has them, how they look, and the picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from codetr_client.detections import Detections
from codetr_client.drawing import colour, readable_on
from codetr_client.errors import (
    CodetrError,
    InvalidImageError,
    ModelNotFoundError,
    ModelNotReadyError,
    RequestDeniedError,
    RequestRefusedError,
    ServerBusyError,
    ServerProtocolError,
    ServerTimeoutError,
    ServerTlsError,
    ServerUnreachableError,
)
from codetr_client.images import open_upright
from codetr_client.text import printable

MAX_SHOWN = 2048  # pixels of the longer side of what the page draws on
_QUALITY = 88


@dataclass(frozen=True)
class Shown:
    """A picture as every browser shows it, upright, and the (width, height) of the original in pixels."""

    size: tuple[int, int]
    url: str


def shown_picture(content: bytes) -> Shown | None:
    """Return an encoded picture as the client opens it, or None if only the server can.

    What browsers make of EXIF, of damaged files and of rare formats differs, so that boxes could be drawn on a picture
    that is turned another way.
    """
    try:
        picture = open_upright(content)
    except InvalidImageError:
        return None
    size = picture.size
    picture.thumbnail((MAX_SHOWN, MAX_SHOWN), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return Shown(size, "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode())


def answer(found: Detections, class_names: Sequence[str], shown: Shown | None, seconds: float) -> dict[str, Any]:
    """Return what the page is sent; `detections`, `annotations` and `looks` have a row a detection, in one order.

    COCO's ids of categories are labels + 1, because many programs take 0 for the background.
    """
    labels = set(found.labels.tolist())
    names = {label: name for label, name in enumerate(class_names) if label in labels or name != "N/A"}
    names |= dict(zip(found.labels.tolist(), found.names, strict=True))
    ids = {label: label + 1 for label in names}
    return {
        "width": None if shown is None else shown.size[0],
        "height": None if shown is None else shown.size[1],
        "picture": None if shown is None else shown.url,
        "seconds": seconds,
        "detections": found.to_json(),
        "annotations": [_annotation(row) for row in found.to_coco(1, ids)],
        "categories": [{"id": ids[label], "name": name} for label, name in sorted(names.items())],
        "looks": [_look(label, name) for label, name in zip(found.labels.tolist(), found.names, strict=True)],
    }


def _annotation(row: dict[str, Any]) -> dict[str, Any]:
    _, _, width, height = row["bbox"]
    return {**row, "area": width * height, "iscrowd": 0}


def _look(label: int, name: str) -> dict[str, str]:
    background = colour(label)
    ink = readable_on(background)
    return {
        "name": printable(name),
        "colour": "#{:02x}{:02x}{:02x}".format(*background),
        "ink": "#{:02x}{:02x}{:02x}".format(*ink),
    }


# HTTP statuses of errors, the special before the general.
_STATUSES: tuple[tuple[type[CodetrError], int], ...] = (
    (RequestRefusedError, 400),
    (InvalidImageError, 400),
    (ModelNotFoundError, 404),
    (RequestDeniedError, 502),  # not 401: it is this program that lacks credentials
    (ServerTimeoutError, 504),
    (ServerBusyError, 503),
    (ModelNotReadyError, 503),
)


def failure(error: CodetrError) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the document of an error; `again` is true where the same may succeed later."""
    status = next((status for kind, status in _STATUSES if isinstance(error, kind)), 502)
    lasting = isinstance(error, (ServerProtocolError, ServerTlsError))
    away = isinstance(error, (ServerUnreachableError, ModelNotReadyError, ModelNotFoundError, ServerBusyError))
    return status, {"error": printable(error), "again": away and not lasting}
