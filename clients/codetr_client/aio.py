"""The asyncio twin of `codetr_client.client`: the same calls, awaited."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeVar

from codetr_client import forks, probe
from codetr_client.client import BaseClient
from codetr_client.deadline import Deadline
from codetr_client.detections import Detections
from codetr_client.errors import ClientStateError
from codetr_client.faults import Faults, UnexplainedError
from codetr_client.images import ImageInput, encode_all
from codetr_client.options import checked_headers
from codetr_client.steps import Send, Steps, Wait
from codetr_client.wire import Ask, Endpoint

T = TypeVar("T")


class AsyncTransport(Protocol):
    """What carries questions: gRPC or HTTP."""

    async def send(self, ask: Ask, headers: Mapping[str, str], deadline: Deadline) -> Any:
        """Return the answer to one question; raises a ServiceError."""

    async def close(self) -> None:
        """Close the connections."""


def transport(endpoint: Endpoint) -> AsyncTransport:
    """Return what carries questions to an endpoint, within the running event loop."""
    if endpoint.protocol == "grpc":
        forks.check()
        from codetr_client.grpc_channels import AsyncGrpcTransport

        return AsyncGrpcTransport(endpoint)
    from codetr_client.http_streams import AsyncHttpTransport

    return AsyncHttpTransport(endpoint)


class AsyncConnection:
    """Performs the steps of calls within one event loop, which is that of the first call.

    Raises ClientStateError after `close`, in another event loop and in another process.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._transport: AsyncTransport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = os.getpid()
        self._is_closed = False
        self._asking = asyncio.Lock()
        self._configs: dict[Ask, Any] = {}

    async def close(self) -> None:
        """Close the connections; a second time does nothing."""
        is_here = self._loop is asyncio.get_running_loop() and os.getpid() == self._process
        if self._transport is not None and not self._is_closed and not is_here:
            if self._loop is not None and not self._loop.is_closed() and os.getpid() == self._process:
                self._check()
            # what is left belongs to a loop that is over, or to the process this one is a fork of
        elif self._transport is not None and not self._is_closed:
            self._is_closed = True
            await self._transport.close()
        self._is_closed = True

    async def run(self, steps: Steps[T]) -> T:
        """Perform the steps of a call and return its result."""
        self._check()
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._perform(step)
                except Exception as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            return end.value

    async def _perform(self, step: Send | Wait) -> Any:
        if isinstance(step, Wait):
            return await asyncio.sleep(step.seconds)
        return await (self._ask_once(step) if step.ask.what == "config" else self._send(step))

    async def _send(self, step: Send) -> Any:
        self._check()
        if self._transport is None:
            self._transport = transport(self.endpoint)
        try:
            return await self._transport.send(step.ask, step.headers, step.deadline)
        except UnexplainedError as error:
            raise await asyncio.to_thread(probe.explained, self.endpoint, error, step.deadline) from error

    async def _ask_once(self, step: Send) -> Any:
        """Let calls at the same time ask for a configuration once."""
        try:
            await asyncio.wait_for(self._asking.acquire(), step.deadline.left())
        except asyncio.TimeoutError as error:
            raise Faults(self.endpoint).timed_out() from error
        try:
            if step.ask not in self._configs:
                self._configs[step.ask] = await self._send(step)
            return self._configs[step.ask]
        finally:
            self._asking.release()

    def _check(self) -> None:
        if self._is_closed:
            raise ClientStateError("the client is closed; make another")
        if os.getpid() != self._process:
            raise ClientStateError("the client was made in the process that this one is a fork of; make one here")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if self._loop is not asyncio.get_running_loop():
            raise ClientStateError("the client belongs to another event loop, that of its first call; make one here")


class AsyncCoDetrClient(BaseClient[AsyncConnection]):
    """A connection to a server that runs the `codetr` ensemble, for one event loop.

        async with AsyncCoDetrClient("localhost:8001") as client:
            detections = await asyncio.gather(*(client.detect(path) for path in paths))

    Arguments as `codetr_client.client.CoDetrClient`. Calls may run at the same time; a cancelled one leaves the client
    usable.
    """

    _connect = AsyncConnection

    async def __aenter__(self) -> AsyncCoDetrClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; a second time does nothing."""
        await self._connection.close()

    async def detect(
        self, image: ImageInput, score_threshold: float | None = None, *, headers: Mapping[str, str] | None = None
    ) -> Detections:
        """Return the detections of one image; arguments and errors as `CoDetrClient.detect`."""
        return (await self.detect_batch([image], score_threshold, headers=headers))[0]

    async def detect_batch(
        self,
        images: Iterable[ImageInput],
        score_threshold: float | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> list[Detections]:
        """Return the detections of several images sent as one request, as `CoDetrClient.detect_batch`."""
        deadline, added = self._deadline(), checked_headers(headers)
        # reading and encoding would hold up every other call of the loop
        payloads = await asyncio.to_thread(encode_all, images)
        if not payloads:
            return []
        return await self._connection.run(self._calls.detect(payloads, score_threshold, added, deadline))

    async def class_names(self) -> tuple[str, ...]:
        """Return the detector's class names in label order; () where neither the caller nor the server names them."""
        return await self._connection.run(self._calls.class_names({}, self._deadline()))

    async def models(self, *, headers: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """Return the names of the server's models that answer as this client expects, as `CoDetrClient.models`."""
        return await self._connection.run(self._calls.models(checked_headers(headers), self._deadline()))

    async def check(self) -> None:
        """Raise a `codetr_client.errors.ServiceError` unless the model can answer now."""
        await self._connection.run(self._calls.check({}, self._deadline()))
