"""When a failed call is repeated, and what a caller then gets."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from codetr_client import deadline, errors
from codetr_client.client import CoDetrClient
from codetr_client.deadline import Deadline, wait_before_repeat
from serving.addresses import free_ports
from tests.clients import fakes
from tests.clients.conftest import HANGS, Call, Server, within
from tests.clients.fakes import Refusal

BUSY = Refusal("UNAVAILABLE", "Exceeds maximum queue size")


def test_a_busy_server_is_asked_again(call: Call, server: Server) -> None:
    server.script = [BUSY, BUSY]
    assert len(call("detect", b"a", url=server.url, retries=2)) == 1
    assert len(server.seen) == 3


def test_a_step_that_died_is_waited_for(call: Call, server: Server) -> None:
    server.script = [Refusal("INTERNAL", "Stub process 'codetr_detector_0_0' is not healthy."), BUSY]
    assert len(call("detect", b"a", url=server.url, retries=2)) == 1


def test_as_often_as_was_asked_for(call: Call, server: Server) -> None:
    server.script = [BUSY] * 5
    with pytest.raises(errors.ServerBusyError):
        call("detect", b"a", url=server.url, retries=1)
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    "refusal",
    [Refusal("INVALID_ARGUMENT", "no image"), Refusal("INTERNAL", "fault"), Refusal("NOT_FOUND", "no model"),
     Refusal("UNAUTHENTICATED", "no token"), Refusal("UNAVAILABLE", "restricted, expecting header 'x'")],
    ids=lambda refusal: refusal.message,
)  # fmt: skip
def test_nothing_else_is_asked_again(call: Call, server: Server, refusal: Refusal) -> None:
    server.script = [refusal]
    with pytest.raises(errors.ServiceError):
        call("detect", b"a", url=server.url, retries=5)
    assert len(server.seen) == 1


def test_a_model_that_is_loading_is_waited_for(call: Call, server: Server) -> None:
    server.ready = False
    load = threading.Timer(0.3, setattr, (server, "ready", True))
    load.start()
    call("check", url=server.url, retries=1000, timeout=HANGS)
    load.join()


def test_each_try_says_how_much_time_is_left(call: Call, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]  # of both clocks, which go on with each request: between two looks at real ones a thread may pause
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: now[-1], time=lambda: 10**9 + now[-1]))

    def busy() -> Refusal:
        now.append(now[-1] + 7)
        return BUSY

    server.script = [busy, busy]
    call("detect", b"a", url=server.url, retries=2, timeout=100)
    assert [seen.parameters["timeout"] for seen in server.seen] == [100_000_000, 93_000_000, 86_000_000]
    assert {seen.parameters["deadline_unix_ms"] for seen in server.seen} == {(10**9 + 1100) * 1000}


def test_a_server_that_comes_back_answers_the_call_that_waited(protocol: str, call: Call) -> None:
    port, triton = free_ports(1)[0], fakes.FakeTriton()
    serve = fakes.grpc_server if protocol == "grpc" else fakes.http_server
    done = threading.Event()

    def start() -> None:
        time.sleep(0.5)
        with serve(triton, port=port):
            done.wait(HANGS)

    thread = threading.Thread(target=start)
    thread.start()
    try:
        url = f"{protocol}://127.0.0.1:{port}"
        assert len(call("detect", b"a", url=url, retries=1000, timeout=HANGS)) == 1
    finally:
        done.set()
        thread.join()
    assert len(triton.seen) == 1


def test_a_client_survives_its_servers_restart(protocol: str) -> None:
    """Over the connection that the old server closed."""
    port, triton = free_ports(1)[0], fakes.FakeTriton()
    serve = fakes.grpc_server if protocol == "grpc" else fakes.http_server
    with CoDetrClient(f"{protocol}://127.0.0.1:{port}", retries=1000, timeout=HANGS) as client:
        for _ in range(2):
            with serve(triton, port=port):
                assert len(client.detect(b"a")) == 1
    assert len(triton.seen) == 2


def test_a_connection_that_breaks_off_is_tried_again(call: Call) -> None:
    """Detecting changes nothing on the server, so a request may arrive twice."""
    body, head = fakes.infer_body(fakes.tensors(1))
    good = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ninference-header-content-length: %d\r\n\r\n" % (len(body), head)
    served: list[int] = []

    def handle(connection) -> None:
        fakes.read_request(connection)
        served.append(1)
        connection.sendall((good + body)[: None if len(served) > 2 else 80])

    with fakes.raw_server(handle) as port:
        url = f"http://127.0.0.1:{port}"
        assert len(call("detect", b"a", url=url, retries=5, class_names=(), timeout=HANGS)) == 1


def test_cancelling_ends_the_wait(server: Server) -> None:
    from codetr_client.aio import AsyncCoDetrClient

    server.script = [BUSY] * 1000

    async def run() -> None:
        async with AsyncCoDetrClient(server.url, retries=1000, timeout=600) as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.detect(b"a"), 0.4)

    within(HANGS, lambda: asyncio.run(run()))


def wait(error: errors.ServiceError, repeats: int, retries: int = 10**6, seconds: float = 1e6) -> Any:
    return wait_before_repeat(error, repeats, retries, Deadline(seconds))


def test_waits_double_up_to_a_bound_with_jitter() -> None:
    busy = errors.ServerBusyError("")
    for repeats, longest in ((0, 0.1), (1, 0.2), (3, 0.8), (10, 5.0), (2000, 5.0)):
        waits = [wait(busy, repeats) for _ in range(200)]
        assert longest / 2 <= min(waits) <= max(waits) <= longest
        assert len(set(waits)) > 100, "clients that failed together do not come back together"


def test_no_wait_goes_beyond_the_deadline() -> None:
    busy = errors.ServerBusyError("")
    assert wait(busy, 20, seconds=2.0) is None
    assert wait(busy, 0, seconds=0.15) is None, "the next try could not end"
    assert wait(busy, 20, seconds=HANGS) is not None


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (errors.ServerBusyError, True),
        (errors.ServerUnreachableError, True),
        (errors.ModelNotReadyError, True),
        (errors.ServerProtocolError, False),
        (errors.ServerTlsError, False),
        (errors.ServerTimeoutError, False),
        (errors.ServerAnswerError, False),
        (errors.ServerFaultError, False),
        (errors.RequestRefusedError, False),
        (errors.RequestDeniedError, False),
        (errors.ModelNotFoundError, False),
    ],
)
def test_what_another_try_may_find_otherwise(error: type[errors.ServiceError], again: bool) -> None:
    assert (wait(error(""), 0) is not None) == again
    assert wait(error(""), 0, retries=0) is None


def test_a_deadline_counts_down() -> None:
    long, over = Deadline(100.0), Deadline(1e-9)
    assert 10 < long.left() <= 100.0
    assert over.left() == 0.0
    assert abs(long.unix_ms() / 1000 - time.time() - 100) < 90
    assert deadline.FIRST_WAIT < deadline.MAX_WAIT
