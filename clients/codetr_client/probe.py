"""What speaks at an address, asked once a call has failed without a reason: the message then names the likely cause."""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Literal

from codetr_client import lookup
from codetr_client.deadline import Deadline
from codetr_client.errors import ServerAnswerError
from codetr_client.faults import Faults, UnexplainedError
from codetr_client.http_wire import BrokenOffError, Exchange, NotHttpError
from codetr_client.options import Tls
from codetr_client.wire import Endpoint

SECONDS = 1.0  # for each of the two questions, and never more than the call has left

_NOT_ACCEPTED = "ALERT_BAD_CERTIFICATE"
Speaks = Literal["grpc", "http", "other http", "tls", "nothing known"]


def explained(endpoint: Endpoint, error: UnexplainedError, deadline: Deadline) -> Exception:
    """Return the error to raise in place of one that only says that the connection ended."""
    faults = Faults(endpoint)
    speaks = _speaks(endpoint, deadline)
    if endpoint.tls is not None:
        if speaks in ("grpc", "http", "other http"):
            return faults.tls_text("WRONG_VERSION_NUMBER")
        return _from_handshake(endpoint, endpoint.tls, Deadline(min(SECONDS, deadline.left()))) or error.plain()
    if speaks == "tls":
        return faults.encrypted()
    if endpoint.protocol == "grpc" and speaks in ("http", "other http"):
        return faults.other_protocol("it speaks HTTP/1, not gRPC", has_kserve=speaks == "http")
    if endpoint.protocol == "http" and speaks == "grpc":
        return faults.other_protocol("it speaks gRPC, not HTTP/1")
    return error.plain()


def _from_handshake(endpoint: Endpoint, tls: Tls, deadline: Deadline) -> Exception | None:
    """Return what is wrong with an encrypted connection, or None if nothing is seen.

    Nothing is sent but the handshake: a server that refuses the client's certificate says so then, and a request that
    is under way would lose its words.
    """
    faults, context = Faults(endpoint), tls.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    name = tls.server_name or endpoint.host
    try:
        with _connected(endpoint, deadline) as plain, context.wrap_socket(plain, server_hostname=name) as connection:
            spoken = connection.selected_alpn_protocol()
            if spoken is not None and (spoken == "h2") != (endpoint.protocol == "grpc"):
                return faults.tls_text("ALPN")
            connection.settimeout(max(deadline.left(), 0.001))
            if not connection.recv(1):  # gRPC's servers hang up without a word, once they have seen no certificate
                return faults.tls_text("CERTIFICATE_REQUIRED" if tls.certificate_file is None else _NOT_ACCEPTED)
    except (ConnectionError, TimeoutError, ssl.SSLEOFError):
        return None
    except ssl.SSLError as error:
        return faults.from_tls(error)
    except OSError:
        return None
    return None


def _speaks(endpoint: Endpoint, deadline: Deadline) -> Speaks:
    try:
        first = _answer_to_get(endpoint, Deadline(min(SECONDS, deadline.left())))
    except (ConnectionError, TimeoutError):
        first = b""
    except OSError:
        return "nothing known"
    if first.startswith(b"HTTP/1"):
        return "http" if b'"name"' in first else "other http"
    if is_http2(first):
        return "grpc"
    if first[:2] == b"\x15\x03" or (not first and _shakes_hands(endpoint, Deadline(min(SECONDS, deadline.left())))):
        return "tls"
    return "nothing known"


def is_http2(first: bytes) -> bool:
    """Whether an answer begins with HTTP/2's frame of type SETTINGS: three bytes of length, then 4."""
    return len(first) >= 4 and first[0] == 0 and first[3] == 4


def _connected(endpoint: Endpoint, deadline: Deadline) -> socket.socket:
    family, address = lookup.addresses(endpoint.host, endpoint.port, deadline)[0]
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(max(deadline.left(), 0.001))
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _answer_to_get(endpoint: Endpoint, deadline: Deadline) -> bytes:
    with _connected(endpoint, deadline) as connection:
        whole, exchange = b"", Exchange(endpoint, "/v2", {})
        connection.sendall(b"".join(exchange.request()))
        with contextlib.suppress(TimeoutError, ConnectionError, NotHttpError, BrokenOffError, ServerAnswerError):
            while True:
                connection.settimeout(max(deadline.left(), 0.001))
                piece = connection.recv(4096)
                whole += piece
                if exchange.feed(piece) is not None:
                    break
        return whole


def _shakes_hands(endpoint: Endpoint, deadline: Deadline) -> bool:
    """Whether a server answers TLS's first message; nothing is sent to it, so its certificate does not matter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with _connected(endpoint, deadline) as connection, context.wrap_socket(connection):
            return True
    except ssl.SSLEOFError:
        return False
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it speaks TLS, and wants a client certificate for instance
    except OSError:
        return False
