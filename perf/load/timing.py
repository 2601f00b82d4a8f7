"""How one request is timed and judged; knows neither what is sent nor when."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from codetr_client.client import CoDetrClient
from codetr_client.errors import RequestRefusedError
from perf.load.config import LoadConfig
from perf.load.scenarios import Shot
from serving.errors import CodetrError

# More requests at once than this, in one process, are not sent but counted as failures: the server is far behind.
MAX_IN_FLIGHT = 1000


class UnexpectedSuccessError(CodetrError):
    """A bad image that the server answered as if it were good."""


class TooManyInFlightError(CodetrError):
    """A request that was due while MAX_IN_FLIGHT others were still waiting for their answers."""


class Fire(Protocol):
    """What takes a finished request: locust's `environment.events.request.fire`."""

    def __call__(
        self,
        *,
        request_type: str,
        name: str,
        response_time: float,
        response_length: int,
        exception: Exception | None,
        context: dict[str, Any],
    ) -> None:
        """Take one finished request; `response_time` in milliseconds."""


class ClientPool:
    """Clients for requests that may overlap: each has a connection to itself."""

    def __init__(self, connect: Callable[[], CoDetrClient]) -> None:
        self._connect = connect
        self._idle: list[CoDetrClient] = []
        self.in_flight = 0

    def take(self) -> CoDetrClient:
        """Return an idle client, or a new one; raises TooManyInFlightError."""
        if self.in_flight >= MAX_IN_FLIGHT:
            raise TooManyInFlightError(f"not sent: {MAX_IN_FLIGHT} requests are waiting for their answers")
        client = self._idle.pop() if self._idle else self._connect()
        self.in_flight += 1
        return client

    def give_back(self, client: CoDetrClient) -> None:
        """Take a client back that is no longer used."""
        self.in_flight -= 1
        self._idle.append(client)

    def close(self) -> None:
        """Close the idle clients."""
        for client in self._idle:
            with suppress(Exception):  # the run is over; a connection that is gone is closed
                client.close()
        self._idle.clear()


def connect(config: LoadConfig) -> CoDetrClient:
    """Return a client that asks nothing but detections of the server."""
    return config.access.client(config.url, config.protocol, config.timeout, (), config.model)


def send(pool: ClientPool, shot: Shot, protocol: str, fire: Fire) -> None:
    """Send one request, wait for its answer, and report its time; every fault is reported, none raised.

    A bad image is answered well if the server refuses it.
    """
    start = time.perf_counter()
    error = _detect(pool, shot)
    elapsed = (time.perf_counter() - start) * 1e3
    fire(
        request_type=protocol,
        name=shot.name,
        response_time=elapsed,
        response_length=len(shot.image),
        exception=error,
        context={},
    )


def _detect(pool: ClientPool, shot: Shot) -> Exception | None:
    try:
        client = pool.take()
    except CodetrError as error:
        return error
    try:
        client.detect(shot.image)
    except RequestRefusedError as error:
        return None if shot.is_bad else error
    except CodetrError as error:
        return error
    finally:
        pool.give_back(client)
    return UnexpectedSuccessError(f"the server answered '{shot.name}'") if shot.is_bad else None
