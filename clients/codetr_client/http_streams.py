"""HTTP for asyncio: what `http_sockets` does, awaited. One loop's questions may be under way at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from typing import Any

from codetr_client import http_wire, lookup
from codetr_client.deadline import Deadline
from codetr_client.http_sockets import MAX_IDLE, READ_BYTES, HttpEnd, set_options
from codetr_client.http_wire import BrokenOffError, Exchange, NotHttpError, Response
from codetr_client.wire import Ask, Endpoint

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AsyncHttpTransport(HttpEnd):
    """Answers questions over HTTP, within one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._idle: list[Streams] = []
        self._is_closed = False

    async def close(self) -> None:
        """Close the idle connections; those in use are closed when their answers are there."""
        idle, self._idle, self._is_closed = self._idle, [], True
        for _, writer in idle:
            writer.transport.abort()
        await asyncio.sleep(0)  # the transports close in the loop's next round

    async def send(self, ask: Ask, headers: Mapping[str, str], deadline: Deadline) -> Any:
        """Return the answer to one question; raises a ServiceError."""
        doing = ["the lookup of its name did not end"]
        try:
            response = await asyncio.wait_for(self._response(ask, headers, deadline, doing), deadline.left())
        except asyncio.TimeoutError as error:  # a class of its own before Python 3.11
            raise self._faults.timed_out(doing[0]) from error
        return self._read(ask, response)

    async def _response(self, ask: Ask, headers: Mapping[str, str], deadline: Deadline, doing: list[str]) -> Response:
        while (kept := self._take()) is not None:
            exchange = http_wire.exchange(self._endpoint, ask, headers)
            try:
                return await self._perform(kept, exchange, doing)
            except (ConnectionError, BrokenOffError) as error:
                if exchange.has_begun:
                    raise self._broken_off(error) from error
        exchange = http_wire.exchange(self._endpoint, ask, headers)
        try:
            return await self._perform(await self._connect(deadline, doing), exchange, doing)
        except (ConnectionError, BrokenOffError) as error:
            raise self._broken_off(error) from error

    def _take(self) -> Streams | None:
        while self._idle:
            streams = self._idle.pop()
            if not streams[0].at_eof() and not streams[1].is_closing():
                return streams
            streams[1].transport.abort()
        return None

    async def _perform(self, streams: Streams, exchange: Exchange, doing: list[str]) -> Response:
        doing[0] = ""
        keeps = False
        try:
            response = await _talk(streams, exchange, doing)
            keeps = response.keeps_alive and not self._is_closed and len(self._idle) < MAX_IDLE
        except NotHttpError as error:
            raise self._faults.not_http(error.first) from error
        except ConnectionError:
            raise
        except OSError as error:
            raise self._faults.from_os(error) from error
        finally:
            if keeps:
                self._idle.append(streams)
            else:  # also where the call was cancelled: an answer that nobody reads must not meet the next question
                streams[1].transport.abort()
        return response

    async def _connect(self, deadline: Deadline, doing: list[str]) -> Streams:
        endpoint, loop = self._endpoint, asyncio.get_running_loop()
        doing[0] = f"the lookup of {endpoint.host} did not end"
        try:
            found = await lookup.addresses_awaited(endpoint.host, endpoint.port)
        except OSError as error:
            raise self._faults.unknown_host(error.strerror or str(error)) from error
        doing[0] = "no connection came about"
        failure: OSError = TimeoutError()
        for index, (family, address) in enumerate(found):
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.setblocking(False)
            try:
                set_options(connection, endpoint.options.keepalive)
                share = deadline.left() / (len(found) - index)
                await asyncio.wait_for(loop.sock_connect(connection, address), share)
                return await self._streams(connection)
            except asyncio.TimeoutError:
                connection.close()
            except OSError as error:
                failure = error
                connection.close()
            except BaseException:
                connection.close()
                raise
        raise self._faults.from_os(failure) from failure

    async def _streams(self, connection: socket.socket) -> Streams:
        tls = self._endpoint.tls
        if self._context is None or tls is None:
            return await asyncio.open_connection(sock=connection)
        return await asyncio.open_connection(
            sock=connection, ssl=self._context, server_hostname=tls.server_name or self._endpoint.host
        )


async def _talk(streams: Streams, exchange: Exchange, doing: list[str]) -> Response:
    source, target = streams
    # A connection that closes while it is written to may have answered first, which reading finds.
    with contextlib.suppress(ConnectionError):
        for piece in exchange.request():
            target.write(piece)
            await target.drain()
    while True:
        response = exchange.feed(await source.read(READ_BYTES))
        if response is not None:
            return response
        doing[0] = "a part of the answer came"
