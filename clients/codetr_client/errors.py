"""Errors a user can act on, as exceptions whose message is one line."""

from __future__ import annotations


class CodetrError(Exception):
    """A fault in what the user gave or runs; the message names the fault, the value and what to do."""


class InvalidImageError(CodetrError):
    """An image that cannot be read; in the server the request, and only it, is answered `INVALID_ARG`."""


class ServiceError(CodetrError):
    """A request that got no detections."""


class ServerUnreachableError(ServiceError):
    """Nothing that speaks the protocol answers at the address."""


class ServerTimeoutError(ServiceError):
    """The answer did not come within the client's timeout; the server may still be working on it."""


class ServerBusyError(ServiceError):
    """The server turned the request away: its queue is full, or the request waited there for too long."""


class ModelNotFoundError(ServiceError):
    """The server has no model of this name."""


class ModelNotReadyError(ServiceError):
    """The server knows the model, but has no version of it loaded."""


class RequestRefusedError(ServiceError):
    """The server found the request invalid, usually because of its image; the message is the server's."""


class ServerFaultError(ServiceError):
    """The server failed while it worked on the request; the message is the server's."""
