"""When a failed call is repeated, and what a caller then gets."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from codetr_client import deadline, errors
from codetr_client.client import CoDetrClient
from codetr_client.deadline import Deadline, wait_before_repeat
from tests.clients import fakes
from tests.clients.conftest import Call, Server, within
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

    def load() -> None:
        time.sleep(0.3)
        server.ready = True

    threading.Thread(target=load).start()
    call("check", url=server.url, retries=100, timeout=30)


def test_each_try_says_how_much_time_is_left(call: Call, server: Server) -> None:
    server.script = [BUSY, BUSY]
    call("detect", b"a", url=server.url, retries=2)
    left = [seen.parameters["timeout"] for seen in server.seen]
    assert left[0] > left[1] > left[2], "microseconds"
    ends = [seen.parameters["deadline_unix_ms"] for seen in server.seen]
    assert max(ends) - min(ends) <= 2, "the same time, but for rounding"


def test_a_server_that_comes_back_answers_the_call_that_waited(protocol: str, call: Call) -> None:
    port, triton = fakes.free_port(), fakes.FakeTriton()
    serve = fakes.grpc_server if protocol == "grpc" else fakes.http_server
    started, done = threading.Event(), threading.Event()

    def start() -> None:
        time.sleep(0.5)
        with serve(triton, port=port):
            started.set()
            done.wait(60)

    thread = threading.Thread(target=start)
    thread.start()
    try:
        url = f"{protocol}://127.0.0.1:{port}"
        assert len(call("detect", b"a", url=url, retries=1000, timeout=30)) == 1
    finally:
        done.set()
        thread.join()
    assert len(triton.seen) == 1


def test_a_client_survives_its_servers_restart(protocol: str) -> None:
    """Over the connection that the old server closed."""
    port, triton = fakes.free_port(), fakes.FakeTriton()
    serve = fakes.grpc_server if protocol == "grpc" else fakes.http_server
    with CoDetrClient(f"{protocol}://127.0.0.1:{port}", retries=100, timeout=30) as client:
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
        assert len(call("detect", b"a", url=url, retries=5, class_names=(), timeout=30)) == 1


def test_cancelling_ends_the_wait(server: Server) -> None:
    from codetr_client.aio import AsyncCoDetrClient

    server.script = [BUSY] * 1000

    async def run() -> None:
        async with AsyncCoDetrClient(server.url, retries=1000, timeout=600) as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.detect(b"a"), 0.4)

    within(30, lambda: asyncio.run(run()))


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
    assert wait(busy, 0, seconds=2.0) < 2.0


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
    assert 99 < long.left() <= 100.0
    assert over.left() == 0.0
    assert abs(long.unix_ms() / 1000 - time.time() - 100) < 1
    assert deadline.FIRST_WAIT < deadline.MAX_WAIT
