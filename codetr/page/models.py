"""The servers behind the page: their models, their state, and clients that ask them."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from codetr.page.options import Reach
from codetr_client.aio import AsyncCoDetrClient
from codetr_client.contract import ENSEMBLE
from codetr_client.errors import CodetrError, ModelNotFoundError, RequestDeniedError, ServerUnreachableError
from codetr_client.text import printable
from serving.runtime import statistics_headers

MAX_AGE = 1.0  # seconds; a state that is older is asked for anew
MODELS_AGE = 10.0  # seconds; likewise the list of models
# Seconds after which a client is replaced: it remembers class names, and an engine can be switched.
CLIENT_AGE = 30.0
MAX_WAIT = 1.5  # seconds; a state that takes longer is told with the next question
_LATENCIES = 100  # of the last pictures


class Model:
    """A model on one server. One event loop uses it."""

    def __init__(self, key: str, url: str | None, name: str, reach: Reach) -> None:
        self.key = key
        self.name = name
        self.fault: str | None = "not asked yet"
        self._url = url
        self._reach = reach
        self._checker = reach.checker(url, name)
        self._client: AsyncCoDetrClient | None = None
        self._made = 0.0
        self._users: dict[AsyncCoDetrClient, int] = {}
        self._seconds: deque[float] = deque(maxlen=_LATENCIES)

    async def check(self) -> CodetrError | None:
        """Ask whether the model can answer; return and keep what is wrong."""
        try:
            await self._checker.check()
        except CodetrError as error:
            self.fault = printable(error)
            await self._retire()  # what comes back may be another model
            return error
        self.fault = None
        return None

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncCoDetrClient]:
        """Lend a client; one that is replaced is closed when nobody uses it any more."""
        if self._client is not None and monotonic() - self._made > CLIENT_AGE:
            await self._retire()
        if self._client is None:
            self._client, self._made = self._reach.client(self._url, self.name), monotonic()
        client = self._client
        self._users[client] = self._users.get(client, 0) + 1
        try:
            yield client
        finally:
            self._users[client] -= 1
            await self._close_unused()

    def answered(self, seconds: float) -> None:
        """Count an answer that took so long."""
        self._seconds.append(seconds)

    def latency(self) -> dict[str, Any] | None:
        """Return milliseconds of the last answers; None before the first."""
        if not self._seconds:
            return None
        numbers = [seconds * 1000 for seconds in self._seconds]
        return {
            "count": len(numbers),
            "last": numbers[-1],
            "median": statistics.median(numbers),
            "slowest": max(numbers),
        }

    async def drop(self) -> None:
        """Close what nobody uses, and the rest once it is given back: the model is not asked any more."""
        await self._checker.close()
        await self._retire()

    async def close(self) -> None:
        """Close every connection."""
        for client in {self._checker, *self._users, *([self._client] if self._client else [])}:
            await client.close()

    async def _retire(self) -> None:
        old, self._client = self._client, None
        if old is not None:
            self._users.setdefault(old, 0)
        await self._close_unused()

    async def _close_unused(self) -> None:
        unused = [client for client, users in self._users.items() if not users and client is not self._client]
        for client in unused:
            del self._users[client]
            await client.close()


@dataclass
class Server:
    """One server, and which of its models the page offers: those named, or all that answer as the client expects."""

    number: int
    url: str | None
    reach: Reach
    named: Sequence[str] = ()
    models: dict[str, Model] = field(default_factory=dict)
    milliseconds: float | None = None  # that the last check took
    _asked: float = -MAX_AGE
    _listed: float = -MODELS_AGE
    _looking: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        first = self.named[0] if self.named else ENSEMBLE
        endpoint = self.reach.access.endpoint(self.url, self.reach.protocol, self.reach.timeout, first)
        self.address, self.spoken = endpoint.address, endpoint.protocol
        self._lister = self.reach.checker(self.url, first)
        self._offer(self.named or (ENSEMBLE,))

    async def look(self) -> None:
        """Bring the state up to date, or let that go on where it takes long."""
        if self._looking is None and monotonic() - self._asked > MAX_AGE:
            self._looking = asyncio.create_task(self._look())
        if self._looking is not None:
            await asyncio.wait({self._looking}, timeout=MAX_WAIT)

    def to_json(self) -> dict[str, Any]:
        """Return what the page shows."""
        return {
            "address": printable(self.address),
            "milliseconds": self.milliseconds,
            "models": [
                {"key": model.key, "name": printable(model.name), "fault": model.fault, "latency": model.latency()}
                for model in self.models.values()
            ],
        }

    async def close(self) -> None:
        """Close every connection."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
        await self._lister.close()
        for model in self.models.values():
            await model.close()

    async def _look(self) -> None:
        try:
            if not self.named and monotonic() - self._listed > MODELS_AGE:
                await self._list()
            start = monotonic()
            faults = await asyncio.gather(*(model.check() for model in self.models.values()))
            away = any(isinstance(fault, ServerUnreachableError) for fault in faults)
            self.milliseconds = None if away else (monotonic() - start) * 1000
            if away or any(isinstance(fault, ModelNotFoundError) for fault in faults):
                self._listed = -MODELS_AGE  # what comes back may have other models
        finally:
            self._asked, self._looking = monotonic(), None

    async def _list(self) -> None:
        """Ask for the models; where the server does not tell, those known so far stay."""
        headers = await asyncio.to_thread(statistics_headers, self.address, self.spoken)
        try:
            names = await self._lister.models(headers=headers)
        except RequestDeniedError:  # the same in ten seconds
            self._listed = monotonic()
        except CodetrError:
            pass
        else:
            self._listed = monotonic()
            for name in set(self.models) - set(names) if names else ():
                await self.models.pop(name).drop()
            self._offer(names)

    def _offer(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.models:
                self.models[name] = Model(f"{self.number}:{name}", self.url, name, self.reach)
        self.models = dict(sorted(self.models.items()))


class Servers:
    """All servers behind a page."""

    def __init__(self, urls: Sequence[str | None], named: Sequence[str], reach: Reach) -> None:
        self._servers = [Server(number, url, reach, named) for number, url in enumerate(urls)]

    async def state(self) -> list[dict[str, Any]]:
        """Return the state of every server, with its models."""
        await asyncio.gather(*(server.look() for server in self._servers))
        return [server.to_json() for server in self._servers]

    def find(self, key: str) -> Model | None:
        """Return a model by its key."""
        models = (model for server in self._servers for model in server.models.values())
        return next((model for model in models if model.key == key), None)

    async def close(self) -> None:
        """Close every connection."""
        for server in self._servers:
            await server.close()
