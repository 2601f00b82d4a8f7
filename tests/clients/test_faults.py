"""What answers in place of a Triton is named, with the likely cause and what to do."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from codetr_client import errors, faults, http_wire, wire
from codetr_client.client import CoDetrClient
from serving.addresses import free_ports
from tests.clients import fakes
from tests.clients.conftest import HANGS, Call, Server


def page(status: str, body: bytes = b"<html>Welcome</html>", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "content-type: text/html", "server: nginx", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def infer_answer(body: bytes, head: int | None = None) -> bytes:
    length = f"inference-header-content-length: {len(body) if head is None else head}"
    return f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n{length}\r\n\r\n".encode() + body


GOOD, GOOD_HEAD = fakes.infer_body(fakes.tensors(1))

HTTP_ANSWERS = [
    pytest.param(page("401 Unauthorized"), errors.RequestDeniedError, "401, nginx.*wants cred.*give headers", id="401"),
    pytest.param(page("403 Forbidden"), errors.RequestDeniedError, "status 403, nginx, text/html: .*cred", id="403"),
    pytest.param(page("407 Proxy"), errors.RequestDeniedError, "status 407", id="407"),
    pytest.param(page("404 Not Found"), errors.ServerProtocolError, "404.*path prefix in the url", id="404"),
    pytest.param(page("405 No"), errors.ServerProtocolError, "405.*port 8002 is for its metrics page", id="405"),
    pytest.param(page("413 Large"), errors.RequestRefusedError, "413.*send smaller images", id="413"),
    pytest.param(page("429 Slow"), errors.ServerBusyError, "turned the request away: HTTP status 429", id="429"),
    pytest.param(page("500 Oops"), errors.ServerFaultError, "answers with HTTP status 500, nginx", id="500"),
    pytest.param(page("502 Bad"), errors.ServerUnreachableError, "a proxy .*502.*server behind it run", id="502"),
    pytest.param(page("503 No"), errors.ServerBusyError, "turned the request away: HTTP status 503", id="503"),
    pytest.param(page("504 Late"), errors.ServerUnreachableError, "a proxy answers with status 504", id="504"),
    pytest.param(page("418 Teapot"), errors.ServerProtocolError, "418.*which Triton does not", id="418"),
    pytest.param(
        page("302 Found", b"", "location: https://user:s3cret@login.example/in?token=s3cret"),
        errors.ServerProtocolError,
        "points to https://login.example/in, which is not followed; give that url",
        id="a login page",
    ),
    pytest.param(
        page("200 OK"), errors.ServerAnswerError, "not JSON but 20 bytes of text/html; is it a proxy", id="200"
    ),
    pytest.param(page("200 OK", b""), errors.ServerAnswerError, "not JSON but 0 bytes", id="an empty answer"),
    pytest.param(page("204 None", b""), errors.ServerAnswerError, "not JSON but 0 bytes", id="no content"),
    pytest.param(infer_answer(b"[1]"), errors.ServerAnswerError, "a JSON list; expected an object", id="a list"),
    pytest.param(infer_answer(b"{}"), errors.ServerAnswerError, "no outputs as KServe", id="no outputs"),
    pytest.param(infer_answer(b'{"outputs": 7}'), errors.ServerAnswerError, "no outputs as KServe", id="a number"),
    pytest.param(infer_answer(b"[" * 100_000), errors.ServerAnswerError, "not JSON", id="nested without end"),
    pytest.param(infer_answer(GOOD, GOOD_HEAD)[:-9], errors.ServerUnreachableError, "broke off after", id="cut short"),
    pytest.param(
        infer_answer(GOOD[:-9], GOOD_HEAD), errors.ServerAnswerError, "does not fit its 11 bytes", id="short, but whole"
    ),
    pytest.param(infer_answer(GOOD, 10**9), errors.ServerAnswerError, "content-length is '1000000000'", id="head"),
    pytest.param(
        infer_answer(GOOD.replace(b"FP32", b"FP16"), GOOD_HEAD), errors.ServerAnswerError, "got 'FP16'", id="FP16"
    ),
    pytest.param(
        infer_answer(GOOD.replace(b"[1, 4, 4]", b"[1, 4, 9]"), GOOD_HEAD), errors.ServerAnswerError, "fit", id="shape"
    ),
    pytest.param(b"HTTP/1.1 200 OK\r\n", errors.ServerUnreachableError, "before its headers ended", id="half a head"),
    pytest.param(b"", errors.ServerUnreachableError, "broke off without an answer", id="nothing"),
    pytest.param(b"SSH-2.0-OpenSSH_9\r\n", errors.ServerProtocolError, "what answers there is not HTTP", id="SSH"),
    pytest.param(
        b"HTTP/2.0 200\r\n\r\n", errors.ServerAnswerError, "one of HTTP/2.0; expected HTTP/1", id="HTTP/2 in words"
    ),
    pytest.param(
        page("200 OK", b"x", "content-length: 5"),
        errors.ServerAnswerError,
        "conflicting Content-Length",
        id="two lengths",
    ),
    pytest.param(
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", errors.ServerAnswerError, "bad Content-Length", id="negative"
    ),
    pytest.param(
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", errors.ServerAnswerError, "at most", id="too long"
    ),
    pytest.param(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000, errors.ServerAnswerError, "headers have more", id="head+"),
    pytest.param(page("200 OK", b"x", "content-encoding: gzip"), errors.ServerAnswerError, "compressed", id="gzip"),
]


@pytest.mark.parametrize(("answer", "expected", "message"), HTTP_ANSWERS)
def test_an_http_answer_that_is_none_of_tritons(
    call: Call, answer: bytes, expected: type[Exception], message: str
) -> None:
    with fakes.raw_server(fakes.answers(answer)) as port, pytest.raises(expected, match=message) as caught:
        call("detect", b"a", url=f"http://127.0.0.1:{port}", timeout=HANGS)
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "codetr serve" not in str(caught.value), "something runs there"


@pytest.mark.parametrize("answer", [page("200 OK", b""), page("200 OK")], ids=["Triton's metrics page", "a login page"])
def test_what_says_yes_to_everything_is_no_ready_model(call: Call, answer: bytes) -> None:
    with (
        fakes.raw_server(fakes.answers(answer)) as port,
        pytest.raises(errors.ServerAnswerError, match="or that of Triton's metrics page"),
    ):
        call("check", url=f"http://127.0.0.1:{port}", timeout=HANGS)


def test_a_refusal_before_the_request_was_read_is_heard(call: Call) -> None:
    """A proxy answers that a request is too large, and closes, while it is sent."""

    def handle(connection: socket.socket) -> None:
        connection.recv(10)
        connection.sendall(page("413 Too Large"))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass

    with fakes.raw_server(handle) as port, pytest.raises(errors.RequestRefusedError, match="413"):
        call("detect", bytes(8 << 20), url=f"http://127.0.0.1:{port}", timeout=HANGS)


@pytest.mark.parametrize("status", [401, 403, 404, 429, 502, 503, 504])
def test_a_proxys_status_on_grpc_means_what_it_means_on_http(status: int) -> None:
    endpoint = wire.endpoint("localhost:1", "grpc", 1.0, "codetr")
    ask = wire.Ask("infer", "codetr")
    code = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "UNIMPLEMENTED"}.get(status, "UNAVAILABLE")
    on_grpc = faults.Faults(endpoint).from_grpc(ask, code, f"Received http2 header with status: {status}")
    on_http = faults.Faults(endpoint).from_http(ask, http_wire.Response(status, {}, b""))
    assert type(on_grpc) is type(on_http)
    assert str(on_grpc) == str(on_http)


OTHERS = {
    "http": [
        pytest.param(fakes.answers(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\0" * 18), "it speaks gRPC", id="gRPC"),
    ],
    "grpc": [
        pytest.param(
            fakes.answers(page("404 Not Found")), "it speaks HTTP/1, not gRPC.*8002 is for its metrics", id="web"
        ),
    ],
}


@pytest.mark.usefixtures("_patient_probe")
@pytest.mark.parametrize(
    ("protocol", "handle", "message"),
    [pytest.param(name, *each.values, id=f"{name}: {each.id}") for name, all_ in OTHERS.items() for each in all_],
)
def test_something_else_at_the_port(
    call: Call, protocol: str, handle: Callable[[socket.socket], None], message: str
) -> None:
    with fakes.raw_server(handle) as port, pytest.raises(errors.ServerProtocolError, match=message) as caught:
        call("detect", b"a", url=f"127.0.0.1:{port}", protocol=protocol, timeout=HANGS, retries=5)
    assert "codetr serve" not in str(caught.value)


@pytest.mark.usefixtures("_patient_probe")
def test_the_other_protocols_port_is_named(call: Call, server: Server) -> None:
    other = "http" if server.protocol == "grpc" else "grpc"
    usual = {"grpc": 8001, "http": 8000}[other]
    message = f"no {other} at .*: it speaks .*; give protocol {server.protocol}, or the port for {other}, .* {usual}"
    for method in ("detect", "check"):
        arguments = [b"a"] if method == "detect" else []
        with pytest.raises(errors.ServerProtocolError, match=message):
            call(method, *arguments, url=f"127.0.0.1:{server.port}", protocol=other, timeout=HANGS)


def test_a_server_that_hangs_up_is_not_told_to_be_started(call: Call, protocol: str) -> None:
    with (
        fakes.raw_server(fakes.hangs_up) as port,
        pytest.raises(errors.ServerUnreachableError, match=r"broke off .*the server stopped") as caught,
    ):
        call("detect", b"a", url=f"127.0.0.1:{port}", protocol=protocol, timeout=HANGS)
    assert type(caught.value) is errors.ServerUnreachableError
    assert "codetr serve" not in str(caught.value)


def test_where_nothing_runs_it_is_told_how_to_start_it(call: Call, protocol: str) -> None:
    url = f"localhost:{free_ports(1)[0]}"
    with pytest.raises(errors.ServerUnreachableError, match=r"connection refused; `codetr serve` starts one$"):
        call("detect", b"a", url=url, protocol=protocol)


def test_elsewhere_it_is_not(protocol: wire.Protocol) -> None:
    endpoint = wire.endpoint("gpu7:8001", protocol, 1.0, "codetr")
    assert "codetr serve" not in str(faults.Faults(endpoint).refused())
    assert "does the server run there" in str(faults.Faults(endpoint).refused())


def test_a_name_without_an_address_is_named(call: Call, protocol: str) -> None:
    with pytest.raises(
        errors.ServerUnreachableError, match=r"the name no-such\.invalid cannot be resolved \(.+\); cor"
    ):
        call("detect", b"a", url="no-such.invalid:8001", protocol=protocol, timeout=HANGS)


GRPC_DETAILS = [
    pytest.param(
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:1: Failed to connect to remote host: "
        "No route to host",
        errors.ServerUnreachableError,
        "No route to host; is the address right",
        id="no route",
    ),
    pytest.param(
        "Too many pings (GOAWAY, debug data: too_many_pings)",
        errors.ServerUnreachableError,
        "keepalive pings; give a longer keepalive",
        id="keepalive that the server does not like",
    ),
    pytest.param("keepalive watchdog timeout", errors.ServerUnreachableError, "broke off", id="keepalive unanswered"),
    pytest.param("Stream removed", errors.ServerUnreachableError, "broke off", id="a stream that ended"),
    pytest.param("DNS resolution failed for h: C-ares", errors.ServerUnreachableError, "cannot be resolved", id="ares"),
]


@pytest.mark.parametrize(("details", "expected", "message"), GRPC_DETAILS)
def test_grpcs_own_words(details: str, expected: type[Exception], message: str) -> None:
    endpoint = wire.endpoint("h:1", "grpc", 1.0, "codetr")
    error = faults.Faults(endpoint).from_grpc(wire.Ask("infer", "codetr"), "UNAVAILABLE", details)
    assert isinstance(error, expected)
    assert message in str(error)


def test_a_request_larger_than_the_server_takes(call: Call) -> None:
    with (
        fakes.grpc_server(fakes.FakeTriton(), max_bytes=1 << 20) as port,
        pytest.raises(errors.RequestRefusedError, match="larger than the server takes"),
    ):
        call("detect", bytes(2 << 20), url=f"grpc://127.0.0.1:{port}", retries=3)


def test_an_idle_connection_that_the_server_closed_is_replaced(tmp_path: Path) -> None:
    """Seen before it is used, or by its use: either way nobody hears of it."""
    served: list[int] = []

    def once(connection: socket.socket) -> None:
        fakes.read_request(connection)
        served.append(1)
        connection.sendall(infer_answer(GOOD, GOOD_HEAD))  # and closes, without having said so

    with (
        fakes.raw_server(once) as port,
        CoDetrClient(f"http://127.0.0.1:{port}", class_names=(), timeout=HANGS) as client,
    ):
        assert [len(client.detect(b"a")) for _ in range(5)] == [1] * 5
    assert len(served) == 5
