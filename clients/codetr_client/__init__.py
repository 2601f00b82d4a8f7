"""Talks to a running detection server: images in, boxes, scores and class names out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codetr_client.aio import AsyncCoDetrClient
    from codetr_client.client import CoDetrClient
    from codetr_client.contract import coco_class_names
    from codetr_client.detections import Detections
    from codetr_client.drawing import draw
    from codetr_client.errors import (
        ClientStateError,
        CodetrError,
        InvalidImageError,
        ModelNotFoundError,
        ModelNotReadyError,
        RequestDeniedError,
        RequestRefusedError,
        ServerAnswerError,
        ServerBusyError,
        ServerFaultError,
        ServerProtocolError,
        ServerTimeoutError,
        ServerTlsError,
        ServerUnreachableError,
        ServiceError,
    )
    from codetr_client.options import Tls

__all__ = [
    "AsyncCoDetrClient",
    "ClientStateError",
    "CoDetrClient",
    "CodetrError",
    "Detections",
    "InvalidImageError",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "RequestDeniedError",
    "RequestRefusedError",
    "ServerAnswerError",
    "ServerBusyError",
    "ServerFaultError",
    "ServerProtocolError",
    "ServerTimeoutError",
    "ServerTlsError",
    "ServerUnreachableError",
    "ServiceError",
    "Tls",
    "coco_class_names",
    "draw",
]
# Where the names that are no errors come from.
_MODULES = {
    "AsyncCoDetrClient": "aio",
    "CoDetrClient": "client",
    "Detections": "detections",
    "Tls": "options",
    "coco_class_names": "contract",
    "draw": "drawing",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: the server reads the contract without tritonclient and Pillow."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
