from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from codetr_client import probe
from codetr_client.aio import AsyncCoDetrClient
from codetr_client.client import CoDetrClient
from tests.clients import fakes

# Seconds after which a call that should long have ended is a hang.
HANGS = 300.0

# Runs one call of the synchronous client or of its asyncio twin: both must do the same.
Call = Callable[..., Any]


def call_now(method: str, *args: Any, **options: Any) -> Any:
    with CoDetrClient(**options) as client:
        return getattr(client, method)(*args)


def call_awaited(method: str, *args: Any, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncCoDetrClient(**options) as client:
            return await getattr(client, method)(*args)

    return asyncio.run(run())


@pytest.fixture(params=[call_now, call_awaited], ids=["sync", "asyncio"])
def call(request: pytest.FixtureRequest) -> Call:
    """A call that fails the test instead of hanging it."""

    def guarded(*args: Any, **options: Any) -> Any:
        return within(HANGS, lambda: request.param(*args, **options))

    return guarded


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """Return what `work` returns or raise what it raises; fail if it does not end."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append((work(), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert ended, f"it did not end within {seconds:g} s"
    result, error = ended[0]
    if error is not None:
        raise error
    return result


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    return request.param


class Server(fakes.FakeTriton):
    """A fake Triton on the protocol of the test."""

    def __init__(self, protocol: str) -> None:
        super().__init__()
        self.protocol = protocol
        self.port = 0

    @property
    def url(self) -> str:
        return f"{self.protocol}://127.0.0.1:{self.port}"


@pytest.fixture
def server(protocol: str) -> Iterator[Server]:
    triton = Server(protocol)
    serve = fakes.grpc_server if protocol == "grpc" else fakes.http_server
    with ExitStack() as stack:
        triton.port = stack.enter_context(serve(triton))
        yield triton


@pytest.fixture
def _patient_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """What speaks at a port is seen on a busy machine too."""
    monkeypatch.setattr(probe, "SECONDS", HANGS)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> fakes.Certificates:
    return fakes.make_certificates(tmp_path_factory.mktemp("certificates"))
