"""Errors a user can act on, as exceptions whose message is one line."""

from __future__ import annotations


class CodetrError(Exception):
    """A fault in what the user gave or runs; the message names the fault, the value and what to do."""


class InvalidImageError(CodetrError):
    """An image that cannot be read; in the server the request, and only it, is answered `INVALID_ARG`."""


class ClientStateError(CodetrError):
    """A client that cannot be used here: it is closed, or of another event loop or process."""


class ServiceError(CodetrError):
    """A request that got no detections."""


class ServerUnreachableError(ServiceError):
    """Nothing answers at the address, or the connection broke off; the message says which."""


class ServerProtocolError(ServerUnreachableError):
    """Something answers at the address that is not what the client asks for: another protocol, or another service."""


class ServerTlsError(ServerUnreachableError):
    """No encrypted connection came about: the certificate, its CA, its name, the client's own, or no TLS there."""


class ServerTimeoutError(ServiceError):
    """The answer did not come within the client's time limit."""


class ServerBusyError(ServiceError):
    """The server turned the request away: its queue is full, or the request waited there for too long."""


class ServerAnswerError(ServiceError):
    """The answer is not what the service promises; the message says what is wrong with it."""


class RequestDeniedError(ServiceError):
    """The server or a proxy in front of it wants credentials, or others than the client's."""


class ModelNotFoundError(ServiceError):
    """The server has no model of this name."""


class ModelNotReadyError(ServiceError):
    """The server knows the model, but has no version of it loaded."""


class RequestRefusedError(ServiceError):
    """The server found the request invalid, usually because of its image; the message is the server's."""


class ServerFaultError(ServiceError):
    """The server failed while it worked on the request; the message is the server's."""
