"""The asyncio twin of `codetr_client.client`: the same calls, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from codetr_client import contract, wire
from codetr_client.detections import Detections
from codetr_client.errors import ServiceError
from codetr_client.images import ImageInput, encode


class AsyncCoDetrClient:
    """A connection to a server that runs the `codetr` ensemble, for one event loop.

        async with AsyncCoDetrClient("localhost:8001") as client:
            detections = await asyncio.gather(*(client.detect(path) for path in paths))

    Arguments as `codetr_client.client.CoDetrClient`. Calls may run at the same time; nothing is retried.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: wire.Protocol = "grpc",
        timeout: float = wire.DEFAULT_TIMEOUT,
        class_names: wire.ClassNames = None,
        model: str = contract.ENSEMBLE,
    ) -> None:
        self._endpoint = wire.endpoint(url, protocol, timeout, model)
        self._names = wire.known_names(class_names)
        self._asking = asyncio.Lock()
        options = {} if protocol == "grpc" else {"conn_timeout": timeout}
        self._triton: Any = self._endpoint.library("aio").InferenceServerClient(self._endpoint.address, **options)

    async def __aenter__(self) -> AsyncCoDetrClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self._triton.close()

    async def detect(self, image: ImageInput, score_threshold: float | None = None) -> Detections:
        """Return the detections of one image; arguments and errors as `CoDetrClient.detect`."""
        return (await self.detect_batch([image], score_threshold))[0]

    async def detect_batch(
        self, images: Sequence[ImageInput], score_threshold: float | None = None
    ) -> list[Detections]:
        """Return the detections of several images sent as one request, as `CoDetrClient.detect_batch`."""
        if not images:
            return []
        # reading and encoding would hold up every other call of the loop
        payloads = await asyncio.to_thread(lambda: [encode(image) for image in images])
        with self._endpoint.typed_errors():
            result = await self._triton.infer(**self._endpoint.request(payloads, score_threshold))
        return wire.read_detections(result, await self.class_names())

    async def class_names(self) -> tuple[str, ...]:
        """Return the detector's class names in label order; () where neither the caller nor the server names them."""
        async with self._asking:
            if self._names is None:
                self._names = await self._ask_names()
            return self._names

    async def check(self) -> None:
        """Raise a `codetr_client.errors.ServiceError` unless the model can answer now."""
        with self._endpoint.typed_errors():
            if not await self._triton.is_model_ready(self._endpoint.model, **self._endpoint.call_options):
                # the metadata of a model that is unknown or not loaded is an error that says which
                await self._triton.get_model_metadata(self._endpoint.model, **self._endpoint.call_options)
                raise self._endpoint.not_ready()

    async def _ask_names(self) -> tuple[str, ...]:
        try:
            with self._endpoint.typed_errors():
                config = await self._triton.get_model_config(self._endpoint.model, **self._endpoint.config_options)
        except ServiceError as error:
            return wire.names_without_config(error)
        return wire.names_from_config(config, self._endpoint.model)
