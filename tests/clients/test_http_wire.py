"""Answers put together from bytes that arrive in any pieces."""

from __future__ import annotations

import json

import numpy as np
import pytest

from codetr_client import http_wire, wire
from codetr_client.errors import ServerAnswerError
from codetr_client.http_wire import BrokenOffError, Exchange, Response
from tests.clients import fakes

BODY = b"0123456789" * 3
HEADS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n" + BODY,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n14;x=y\r\n"
    + BODY[10:]
    + b"\r\n0\r\n\r\n",
    "chunks with a trailer": b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n1E\r\n"
    + BODY
    + b"\r\n0\r\nx-sum: 1\r\n\r\n",
    "after an interim answer": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n"
    b"HTTP/1.1 200 OK\r\ncontent-length: 30\r\n\r\n" + BODY,
    "no reason": b"HTTP/1.1 200\r\ncontent-length:30\r\n\r\n" + BODY,
}
ENDPOINT = wire.endpoint("http://h:1/p", None, 1.0, "x")


def asked() -> Exchange:
    """Return an exchange whose request is sent."""
    exchange = Exchange(ENDPOINT, "/v2", {})
    assert b"".join(exchange.request()).startswith(b"GET /p/v2 HTTP/1.1\r\nhost: h:1\r\n")
    return exchange


@pytest.mark.parametrize("content", HEADS.values(), ids=HEADS.keys())
def test_any_cut_gives_the_same_answer(content: bytes) -> None:
    for cut in range(len(content)):
        exchange = asked()
        assert not cut or exchange.feed(content[:cut]) is None, "not yet whole"
        response = exchange.feed(content[cut:])
        assert response is not None, cut
        assert (response.status, response.body, response.keeps_alive) == (200, BODY, True)
    exchange = asked()
    pieces = [exchange.feed(bytes([byte])) for byte in content]
    assert pieces[:-1] == [None] * (len(content) - 1)
    assert pieces[-1].body == BODY


@pytest.mark.parametrize("content", HEADS.values(), ids=HEADS.keys())
def test_an_end_before_the_end_is_noticed(content: bytes) -> None:
    for cut in range(len(content)):
        exchange = asked()
        if cut:
            exchange.feed(content[:cut])
        assert exchange.has_begun == (cut > 0)
        with pytest.raises(BrokenOffError):
            exchange.feed(b"")


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    exchange = asked()
    assert exchange.feed(b"HTTP/1.1 200 OK\r\n\r\n" + BODY) is None
    response = exchange.feed(b"")
    assert (response.body, response.keeps_alive) == (BODY, False)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", id="HTTP/1.0"),
        pytest.param(b"HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 1\r\n\r\nx", id="said"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxHTTP", id="more than was asked for"),
    ],
)
def test_connections_that_carry_no_further_request(content: bytes) -> None:
    assert not asked().feed(content).keeps_alive


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"transfer-encoding: gzip\r\n\r\n", "Only Transfer-Encoding: chunked", id="encoding"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\nxyz\r\n", "chunk header: .*xyz", id="length"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\n1\r\nab\r\n", "malformed chunk footer", id="end"),
        pytest.param(
            b"transfer-encoding: chunked\r\n\r\n" + b"1" * 30_000, "headers have more", id="endless chunk length"
        ),
        pytest.param(b"content-length: 67108865\r\n\r\n", "has 67108865 bytes or more; expected at most", id="size"),
        pytest.param(b"no colon\r\n\r\n", "illegal header line: .*no colon", id="header"),
        pytest.param(b"x:" + b"y" * 10_000 + b"\0\r\n\r\n", "illegal header line: .{99}$", id="a long line"),
        pytest.param(b"x: 1\r\n" * 4000, "headers have more than 16384 bytes", id="headers"),
    ],
)
def test_what_is_no_http_is_an_error(content: bytes, message: str) -> None:
    with pytest.raises(ServerAnswerError, match=message):
        asked().feed(b"HTTP/1.1 200 OK\r\n" + content)


@pytest.mark.parametrize(
    ("head", "before", "after"),
    [
        pytest.param(b"\r\n", b"", b"", id="no length"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\n", b"100000\r\n", b"\r\n", id="chunks"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\nffffffff\r\n", b"", b"", id="a chunk"),
    ],
)
def test_an_answer_without_an_end_is_not_kept(head: bytes, before: bytes, after: bytes) -> None:
    exchange, piece = asked(), before + bytes(1 << 20) + after
    exchange.feed(b"HTTP/1.1 200 OK\r\n" + head)
    for _ in range(64):
        assert exchange.feed(piece) is None
    with pytest.raises(ServerAnswerError, match="or more; expected at most 67108864"):
        exchange.feed(piece)


def test_an_answer_before_the_request_was_sent_ends_the_connection() -> None:
    exchange = http_wire.exchange(ENDPOINT, wire.Ask("infer", "x", (b"abc",)), {})
    next(exchange.request())
    response = exchange.feed(HEADS["length"])
    assert (response.body, response.keeps_alive) == (BODY, False)


def test_an_image_goes_out_as_the_object_that_it_is() -> None:
    images = (bytes(1 << 20), b"abc")
    exchange = http_wire.exchange(ENDPOINT, wire.Ask("infer", "x", images), {"x-a": "b"})
    head, document, *pieces = exchange.request()
    assert pieces == [b"\0\0\x10\0", images[0], b"\3\0\0\0", images[1]]
    assert pieces[1] is images[0]
    size, lines = len(document), head.split(b"\r\n")
    assert lines[0] == b"POST /p/v2/models/x/infer HTTP/1.1"
    assert {b"host: h:1", b"x-a: b", b"inference-header-content-length: %d" % size} <= set(lines)
    assert b"content-length: %d" % (size + (1 << 20) + 11) in lines


def test_outputs_as_json_are_read_too() -> None:
    expected = fakes.tensors(2)
    outputs = [
        {"name": name, "datatype": fakes.DATATYPES[array.dtype], "shape": array.shape, "data": array.ravel().tolist()}
        for name, array in expected.items()
    ]
    body = json.dumps({"outputs": outputs}).encode()
    found = http_wire.read(wire.Ask("infer", "codetr"), Response(200, {}, body)).tensors
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_a_models_name_cannot_leave_its_place_in_the_path() -> None:
    (head,) = http_wire.exchange(ENDPOINT, wire.Ask("config", "../a b\r\nx: y?"), {}).request()
    assert head.startswith(b"GET /p/v2/models/..%2Fa%20b%0D%0Ax%3A%20y%3F/config HTTP/1.1\r\nhost: h:1\r\n")
    assert head.count(b"\r\n\r\n") == 1
