"""HTTP over plain sockets: any thread may ask, each question has a connection to itself, and connections are kept.

Sockets of the standard library can be given the time that is left of a call at each step.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Mapping
from typing import Any

from codetr_client import http_wire, lookup
from codetr_client.deadline import Deadline
from codetr_client.faults import Faults
from codetr_client.http_wire import BrokenOffError, Exchange, NotHttpError, Response
from codetr_client.wire import Ask, Endpoint

READ_BYTES = 4 << 10  # by so much an answer's headers may exceed their limit before that is noticed
MAX_IDLE = 64  # connections kept; more than so many threads at once connect anew


class HttpEnd:
    """What both transports over HTTP know, and make of an answer."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._faults = Faults(endpoint)
        self._context = None if endpoint.tls is None else endpoint.tls.context()

    def _read(self, ask: Ask, response: Response) -> Any:
        if not 200 <= response.status < 300:
            raise self._faults.from_http(ask, response)
        return http_wire.read(ask, response)

    def _broken_off(self, error: ConnectionError | BrokenOffError) -> Exception:
        return self._faults.from_os(error) if isinstance(error, OSError) else self._faults.broken_off(str(error))


class HttpTransport(HttpEnd):
    """Answers questions over HTTP; in a forked child it connects anew."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[socket.socket] = []
        self._is_closed = False

    def after_fork(self) -> None:
        """Leave the connections to the process that made them; closing our side of them does not end them there."""
        idle = self._idle
        self._forget()
        for connection in idle:
            _close_here(connection)

    def close(self) -> None:
        """Close the idle connections; those in use are closed when their answers are there."""
        with self._lock:
            idle, self._idle, self._is_closed = self._idle, [], True
        for connection in idle:
            connection.close()

    def send(self, ask: Ask, headers: Mapping[str, str], deadline: Deadline) -> Any:
        """Return the answer to one question; raises a ServiceError."""
        return self._read(ask, self._response(ask, headers, deadline))

    def _response(self, ask: Ask, headers: Mapping[str, str], deadline: Deadline) -> Response:
        # A server may close an idle connection at any time. That is found out before it is used, or by using it: then
        # the question goes over another one.
        while (kept := self._take()) is not None:
            exchange = http_wire.exchange(self._endpoint, ask, headers)
            try:
                return self._perform(kept, exchange, deadline)
            except (ConnectionError, BrokenOffError) as error:
                if exchange.has_begun:
                    raise self._broken_off(error) from error
        exchange = http_wire.exchange(self._endpoint, ask, headers)
        try:
            return self._perform(self._connect(deadline), exchange, deadline)
        except (ConnectionError, BrokenOffError) as error:
            raise self._broken_off(error) from error

    def _take(self) -> socket.socket | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if not _is_readable(connection):
                return connection
            connection.close()  # its end, or bytes that nobody asked for

    def _give_back(self, connection: socket.socket) -> None:
        with self._lock:
            if not self._is_closed and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _perform(self, connection: socket.socket, exchange: Exchange, deadline: Deadline) -> Response:
        try:
            response = _talk(connection, exchange, deadline)
        except TimeoutError as error:
            connection.close()
            raise self._faults.timed_out("a part of the answer came" if exchange.has_begun else "") from error
        except NotHttpError as error:
            connection.close()
            raise self._faults.not_http(error.first) from error
        except ConnectionError:
            connection.close()
            raise
        except OSError as error:
            connection.close()
            raise self._faults.from_os(error) from error
        except BaseException:
            connection.close()
            raise
        if response.keeps_alive:
            self._give_back(connection)
        else:
            connection.close()
        return response

    def _connect(self, deadline: Deadline) -> socket.socket:
        endpoint = self._endpoint
        try:
            found = lookup.addresses(endpoint.host, endpoint.port, deadline)
        except TimeoutError as error:
            raise self._faults.timed_out(f"the lookup of {endpoint.host} did not end") from error
        except OSError as error:
            raise self._faults.unknown_host(error.strerror or str(error)) from error
        try:
            return self._encrypted(_connect_to_one(found, deadline, endpoint.options.keepalive), deadline)
        except TimeoutError as error:
            if deadline.left():
                raise self._faults.from_os(error) from error
            raise self._faults.timed_out("no connection came about") from error
        except OSError as error:
            raise self._faults.from_os(error) from error

    def _encrypted(self, connection: socket.socket, deadline: Deadline) -> socket.socket:
        tls = self._endpoint.tls
        if self._context is None or tls is None:
            return connection
        try:
            _allow(connection, deadline)
            return self._context.wrap_socket(connection, server_hostname=tls.server_name or self._endpoint.host)
        except BaseException:
            connection.close()
            raise


def _talk(connection: socket.socket, exchange: Exchange, deadline: Deadline) -> Response:
    try:
        for piece in exchange.request():
            _send_all(connection, piece, deadline)
    except ConnectionError as error:
        # It may have answered before it closed: that the request is too large, for instance.
        try:
            return _receive(connection, exchange, deadline)
        except (OSError, BrokenOffError):
            raise error from None
    return _receive(connection, exchange, deadline)


def _receive(connection: socket.socket, exchange: Exchange, deadline: Deadline) -> Response:
    while True:
        _allow(connection, deadline)
        response = exchange.feed(connection.recv(READ_BYTES))
        if response is not None:
            return response


def _connect_to_one(found: list[lookup.Address], deadline: Deadline, keepalive: float | None) -> socket.socket:
    """Return a connection to the first address that answers; each gets its share of the time that is left."""
    failure: OSError = TimeoutError()
    for index, (family, address) in enumerate(found):
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            set_options(connection, keepalive)
            _allow(connection, deadline, len(found) - index)
            connection.connect(address)
        except OSError as error:
            failure = error
            connection.close()
        except BaseException:
            connection.close()
            raise
        else:
            return connection
    raise failure


def set_options(connection: socket.socket, keepalive: float | None) -> None:
    """Send small pieces at once, and probe an idle connection after `keepalive` seconds."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if keepalive is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
            if hasattr(socket, name):  # not on every system
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), max(1, min(int(keepalive), 32767)))


def _allow(connection: socket.socket, deadline: Deadline, parts: int = 1) -> None:
    """Let the next step on the socket take what is left of the call; raises TimeoutError if nothing is."""
    left = deadline.left()
    if not left:
        raise TimeoutError
    connection.settimeout(left / parts)


def _send_all(connection: socket.socket, content: bytes, deadline: Deadline) -> None:
    view = memoryview(content)
    while view:
        _allow(connection, deadline)
        view = view[connection.send(view) :]


def _is_readable(connection: socket.socket) -> bool:
    if hasattr(select, "poll"):  # select() cannot take file numbers above 1023
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([connection], [], [], 0)[0])


def _close_here(connection: socket.socket) -> None:
    connection.close()  # the file number alone: no TLS farewell, no shutdown
