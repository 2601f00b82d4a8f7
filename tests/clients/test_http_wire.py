"""Answers put together from bytes that arrive in any pieces."""

from __future__ import annotations

import json

import numpy as np
import pytest

from codetr_client import http_wire, wire
from codetr_client.errors import ServerAnswerError
from codetr_client.http_wire import BrokenOffError, Response, ResponseReader
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


@pytest.mark.parametrize("content", HEADS.values(), ids=HEADS.keys())
def test_any_cut_gives_the_same_answer(content: bytes) -> None:
    for cut in range(len(content)):
        reader = ResponseReader()
        assert not cut or reader.feed(content[:cut]) is None, "not yet whole"
        response = reader.feed(content[cut:])
        assert response is not None, cut
        assert (response.status, response.body, response.keeps_alive) == (200, BODY, True)
    reader = ResponseReader()
    pieces = [reader.feed(bytes([byte])) for byte in content]
    assert pieces[:-1] == [None] * (len(content) - 1)
    assert pieces[-1].body == BODY


@pytest.mark.parametrize("content", HEADS.values(), ids=HEADS.keys())
def test_an_end_before_the_end_is_noticed(content: bytes) -> None:
    for cut in range(len(content)):
        reader = ResponseReader()
        if cut:
            reader.feed(content[:cut])
        assert reader.has_begun == (cut > 0)
        with pytest.raises(BrokenOffError):
            reader.feed(b"")


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.1 200 OK\r\n\r\n" + BODY) is None
    response = reader.feed(b"")
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
    assert not ResponseReader().feed(content).keeps_alive


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"transfer-encoding: gzip\r\n\r\n", "transfer encoding is 'gzip'", id="encoding"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\nxyz\r\n", "chunk length is b'xyz'", id="length"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\n1\r\nab\r\n", "does not end where its length", id="end"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\nffffffff\r\n", "more than 67108864 bytes", id="size"),
        pytest.param(b"no colon\r\n\r\n", "a line 'no colon' among its headers", id="header"),
    ],
)
def test_what_is_no_http_is_an_error(content: bytes, message: str) -> None:
    with pytest.raises(ServerAnswerError, match=message):
        ResponseReader().feed(b"HTTP/1.1 200 OK\r\n" + content)


def test_an_answer_without_an_end_is_not_kept() -> None:
    reader = ResponseReader()
    reader.feed(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(64):
        reader.feed(bytes(1 << 20))
    with pytest.raises(ServerAnswerError, match="more than"):
        reader.feed(b"x")


def test_outputs_as_json_are_read_too() -> None:
    expected = fakes.tensors(2)
    outputs = [
        {"name": name, "datatype": fakes.DATATYPES[array.dtype], "shape": array.shape, "data": array.ravel().tolist()}
        for name, array in expected.items()
    ]
    body = json.dumps({"outputs": outputs}).encode()
    found = http_wire.read(wire.Ask("infer", "codetr"), Response(200, {}, body))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_a_models_name_cannot_leave_its_place_in_the_path() -> None:
    endpoint = wire.endpoint("http://h:1/p", None, 1.0, "x")
    (head,) = http_wire.request(endpoint, wire.Ask("config", "../a b\r\nx: y?"), {})
    assert head.startswith(b"GET /p/v2/models/..%2Fa%20b%0D%0Ax%3A%20y%3F/config HTTP/1.1\r\nhost: h:1\r\n")
    assert head.count(b"\r\n\r\n") == 1
