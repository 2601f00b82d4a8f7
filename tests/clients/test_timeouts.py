"""A time limit bounds a call in every case. Nothing is timed: a call that is not bounded would not fail in time."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from codetr_client import errors
from codetr_client.client import CoDetrClient
from codetr_client.deadline import Deadline
from codetr_client.errors import CodetrError
from codetr_client.options import Tls
from serving.addresses import free_ports
from tests.clients import fakes
from tests.clients.conftest import HANGS, Call, Server
from tests.clients.fakes import Certificates

LATE = errors.ServerTimeoutError
LIMIT = 0.25
NO_ANSWER = r"no answer from 127\.0\.0\.1:[0-9]+ within 0\.25 s"


def test_a_server_that_accepts_and_says_nothing(call: Call, protocol: str) -> None:
    with fakes.raw_server(fakes.says_nothing) as port, pytest.raises(LATE, match=NO_ANSWER):
        call("detect", b"a", url=f"127.0.0.1:{port}", protocol=protocol, timeout=LIMIT)


def test_a_server_that_takes_no_connection(call: Call, protocol: str) -> None:
    with fakes.black_hole() as port, pytest.raises(LATE, match=NO_ANSWER):
        call("detect", b"a", url=f"127.0.0.1:{port}", protocol=protocol, timeout=LIMIT)


def test_a_server_that_says_nothing_during_the_handshake(call: Call, protocol: str, certificates: Certificates) -> None:
    tls = Tls(certificates.ca_pem)
    with fakes.raw_server(fakes.says_nothing) as port, pytest.raises(LATE, match=NO_ANSWER):
        call("detect", b"a", url=f"127.0.0.1:{port}", protocol=protocol, timeout=LIMIT, tls=tls)


BODY, HEAD = fakes.infer_body(fakes.tensors(1, rows=300))
WHOLE = (
    b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\ninference-header-content-length: %d\r\n\r\n" % (len(BODY), HEAD) + BODY
)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ninference-header-content-length: %d\r\n\r\n" % HEAD
    + b"%x\r\n" % len(BODY)
    + BODY
    + b"\r\n0\r\n\r\n"
)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"x-header: 1\r\n" * 1000, id="headers"),
        pytest.param(WHOLE, id="an answer that would be right in ten minutes"),
        pytest.param(CHUNKED, id="the same in chunks"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, id="going on and on"),
    ],
)
def test_an_answer_that_comes_a_byte_at_a_time(call: Call, answer: bytes) -> None:
    with fakes.raw_server(fakes.drips(answer)) as port, pytest.raises(LATE, match=NO_ANSWER):
        call("detect", b"a", url=f"http://127.0.0.1:{port}", timeout=LIMIT)


def test_an_encrypted_answer_that_comes_a_byte_at_a_time(call: Call, certificates: Certificates) -> None:
    with (
        fakes.raw_server(fakes.drips(WHOLE), certificates.server_context()) as port,
        pytest.raises(LATE, match=NO_ANSWER),
    ):
        call("detect", b"a", url=f"https://127.0.0.1:{port}", timeout=LIMIT, tls=Tls(certificates.ca_pem))


def test_a_server_that_reads_a_byte_at_a_time(call: Call) -> None:
    def reads_slowly(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        while connection.recv(1):
            time.sleep(0.05)

    with fakes.raw_server(reads_slowly) as port, pytest.raises(LATE, match=NO_ANSWER):
        call("detect", bytes(32 << 20), url=f"http://127.0.0.1:{port}", timeout=LIMIT)


def test_a_model_that_takes_too_long(call: Call, server: Server) -> None:
    go_on = threading.Event()
    server.script = [lambda: go_on.wait(HANGS) and fakes.tensors(1)]
    with pytest.raises(LATE, match=NO_ANSWER):
        call("detect", b"a", url=server.url, timeout=LIMIT)
    go_on.set()


def test_the_question_for_class_names_is_within_the_limit(call: Call, server: Server) -> None:
    go_on = threading.Event()
    server.model_config = lambda version="": (
        go_on.wait(HANGS) and {"parameters": {"class_names": {"string_value": "[]"}}}
    )
    with pytest.raises(LATE, match=NO_ANSWER):
        call("detect", b"a", url=server.url, timeout=LIMIT)
    go_on.set()


def test_a_name_lookup_that_does_not_end(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        go_on.wait(HANGS)
        raise socket.gaierror(socket.EAI_AGAIN, "too late")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    with pytest.raises(LATE, match=r"within 2 s: the lookup of some\.example did not end"):
        call("detect", b"a", url="http://some.example:8000", timeout=2.0)
    go_on.set()


def test_an_address_that_takes_no_connection_leaves_time_for_the_next(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton, lookup = fakes.FakeTriton(), socket.getaddrinfo
    with fakes.black_hole() as dead, fakes.http_server(triton) as port:

        def two(host: str, *arguments: Any, **options: Any) -> Any:
            if host != "some.example":
                return lookup(host, *arguments, **options)
            ports = (dead, *[port] * 39)  # the first gets a fortieth of the time, and an answer the rest
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", each)) for each in ports]

        monkeypatch.setattr(socket, "getaddrinfo", two)
        assert len(call("detect", b"a", url="http://some.example:8000", timeout=60.0)) == 1


def test_repeats_and_their_waits_are_within_the_limit(call: Call, protocol: str) -> None:
    """A thousand repeats would take more than an hour."""
    url = f"{protocol}://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises((errors.ServerUnreachableError, LATE), match=r"connection refused|no answer"):  # of the last one
        call("detect", b"a", url=url, timeout=0.5, retries=1000)


def test_nothing_is_sent_when_the_time_is_over_before(call: Call, server: Server) -> None:
    class Slow:
        def __fspath__(self) -> str:
            time.sleep(0.3)
            return __file__

    with pytest.raises(LATE, match=r"within 0\.1 s"):
        call("detect", Slow(), url=server.url, timeout=0.1)
    assert not server.seen


@pytest.mark.parametrize("use", ["check", "class_names"])
def test_the_limit_holds_for_every_call(call: Call, protocol: str, use: str) -> None:
    with fakes.raw_server(fakes.says_nothing) as port, pytest.raises(LATE, match=NO_ANSWER):
        call(use, url=f"127.0.0.1:{port}", protocol=protocol, timeout=LIMIT)


def test_a_timeout_leaves_the_client_usable(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    late: Callable[[], Any] = lambda: go_on.wait(HANGS) and fakes.tensors(2)  # noqa: E731
    with CoDetrClient(server.url, timeout=HANGS, class_names=()) as client:
        for _ in range(2):
            server.script = [late]
            with monkeypatch.context() as impatient:
                impatient.setattr(client, "_deadline", lambda: Deadline(LIMIT))
                with pytest.raises(CodetrError, match="no answer"):
                    client.detect_batch([b"a", b"b"])
            server.script = []  # it may have come too late to be asked for
            assert len(client.detect(b"a")) == 1
        go_on.set()
        assert len(client.detect(b"a")) == 1
