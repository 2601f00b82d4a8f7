from __future__ import annotations

import asyncio
import inspect
import types
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc

from codetr_client import wire


class StubAnswer:
    """An answer of two images: one detection (label 1) in the first, two (labels 0 and 7) in the second."""

    def __init__(self, images: int) -> None:
        boxes = np.zeros((images, 4, 4), np.float32)
        scores = np.zeros((images, 4), np.float32)
        labels = np.full((images, 4), -1, np.int32)
        counts = np.zeros((images, 1), np.int32)
        for image in range(images):
            counts[image] = image + 1
            boxes[image, : image + 1] = [1, 2, 30, 40]
            scores[image, : image + 1] = 0.5
            labels[image, : image + 1] = [[1], [0, 7]][image]
        self._tensors = {"boxes": boxes, "scores": scores, "labels": labels, "num_detections": counts}

    def as_numpy(self, name: str) -> np.ndarray:
        return self._tensors[name]


class StubServer:
    """What tritonclient's connection offers, without a server; `error` is raised by the next call."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.ready = True
        self.requests: list[dict[str, Any]] = []
        self.config: dict[str, Any] | Exception = {
            "config": {"parameters": {"class_names": {"string_value": '["cat", "dog"]'}}}
        }
        self.config_calls = 0

    def infer(self, **request: Any) -> StubAnswer:
        self.requests.append(request)
        self._fail()
        return StubAnswer(request["inputs"][0].shape()[0])

    def is_model_ready(self, model: str, **options: Any) -> bool:
        self._fail()
        return self.ready

    def get_model_metadata(self, model: str, **options: Any) -> None:
        pass

    def get_model_config(self, model: str, **options: Any) -> dict[str, Any]:
        self.config_calls += 1
        if isinstance(self.config, Exception):
            raise self.config
        return self.config

    def close(self) -> None:
        pass

    def _fail(self) -> None:
        if self.error:
            raise self.error


class AwaitableStub:
    """The same for asyncio: every method is a coroutine."""

    def __init__(self, server: StubServer) -> None:
        self._server = server

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._server, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0)  # as every real call, it lets others run
            return method(*args, **kwargs)

        return call if inspect.ismethod(method) else method


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> StubServer:
    stub = StubServer()

    def library(endpoint: wire.Endpoint, name: str = "") -> Any:
        connection = AwaitableStub(stub) if name == "aio" else stub
        return types.SimpleNamespace(
            InferInput=tritonclient.grpc.InferInput, InferenceServerClient=lambda address, **options: connection
        )

    monkeypatch.setattr(wire.Endpoint, "library", library)
    return stub
