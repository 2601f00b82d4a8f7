"""Addresses, headers and numbers that a client takes, and those it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest

from codetr_client import options, wire
from codetr_client.errors import CodetrError
from codetr_client.options import Tls
from tests.clients.conftest import Call


@pytest.mark.parametrize(
    ("url", "protocol", "expected"),
    [
        pytest.param(None, None, ("grpc", "localhost:8001", False), id="nothing given"),
        pytest.param(None, "http", ("http", "localhost:8000", False), id="Triton's port of the protocol"),
        pytest.param("h:1", None, ("grpc", "h:1", False), id="gRPC unless told otherwise"),
        pytest.param("h:1", "http", ("http", "h:1", False), id="host and port"),
        pytest.param("http://h:1/", None, ("http", "h:1", False), id="the scheme tells the protocol"),
        pytest.param("grpc://h:1", "grpc", ("grpc", "h:1", False), id="both, and they agree"),
        pytest.param("https://h", None, ("http", "h:443", True), id="https without a port"),
        pytest.param("http://h/p", None, ("http", "h:80/p", False), id="http without a port"),
        pytest.param("grpcs://h", None, ("grpc", "h:443", True), id="grpcs without a port"),
        pytest.param("https://H.example:1/a/b/", None, ("http", "h.example:1/a/b", True), id="a path prefix"),
        pytest.param("h:1/a", "http", ("http", "h:1/a", False), id="a path prefix without a scheme"),
        pytest.param("[::1]:1", None, ("grpc", "[::1]:1", False), id="IPv6"),
        pytest.param("http://[::1]:1/a", None, ("http", "[::1]:1/a", False), id="IPv6 with a prefix"),
        pytest.param("dns:///h:1", None, ("grpc", "h:1", False), id="a name of several servers"),
        pytest.param("dns://10.0.0.1:53/h:1", "grpc", ("grpc", "h:1", False), id="and who knows it"),
    ],
)
def test_addresses(url: str | None, protocol: Any, expected: tuple[str, str, bool]) -> None:
    endpoint = wire.endpoint(url, protocol, 1.0, "codetr")
    assert (endpoint.protocol, endpoint.address, endpoint.tls is not None) == expected
    again = wire.endpoint(endpoint.url, endpoint.protocol, 1.0, "codetr")
    assert again == endpoint, "the url leads to the same place"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"protocol": "rest"}, "protocol 'rest': expected 'grpc' or 'http'", id="unknown protocol"),
        pytest.param({"model": ""}, "model '': expected the name of an ensemble, such as codetr", id="no model"),
        pytest.param({"model": None}, "model None: expected the name of an ensemble", id="None as a model"),
        pytest.param({"headers": [("a", "b")]}, "headers: expected a mapping of names to values, got list", id="pairs"),
        pytest.param({"headers": ""}, "headers: expected a mapping of names to values, got str", id="text"),
        pytest.param({"timeout": 0}, "timeout 0: expected seconds above 0", id="no time at all"),
        pytest.param({"timeout": math.nan}, "timeout nan: expected seconds", id="NaN"),
        pytest.param({"timeout": math.inf}, "timeout inf: expected seconds", id="for ever"),
        pytest.param({"timeout": None}, "timeout None: expected seconds", id="None"),
        pytest.param({"timeout": "5"}, "timeout '5': expected seconds", id="text"),
        pytest.param({"retries": -1}, "retries -1: expected 0", id="negative"),
        pytest.param({"retries": True}, "retries True: expected 0", id="a yes"),
        pytest.param({"keepalive": 0.1}, "keepalive 0.1: expected 1 second or more", id="too often"),
        pytest.param({"tls": True}, "tls bool: expected a codetr_client.Tls", id="a yes for TLS"),
        pytest.param({"url": "localhost"}, "expected host:port, such as localhost:8001 for grpc", id="no port"),
        pytest.param({"url": "h:x"}, "url 'h:x': expected host:port", id="no number"),
        pytest.param({"url": "h:0"}, "expected host:port", id="port 0"),
        pytest.param({"url": "h:65536"}, "expected host:port", id="port too high"),
        pytest.param({"url": ":1"}, "expected host:port", id="no host"),
        pytest.param({"url": "::1:8001"}, "expected host:port", id="IPv6 without brackets"),
        pytest.param({"url": "h:1?x=y"}, "expected host:port", id="a query"),
        pytest.param({"url": "h:1\r\nx: y"}, "expected host:port", id="a line break"),
        pytest.param({"url": "ftp://h:1"}, "expected host:port", id="another scheme"),
        pytest.param({"url": "dns:///h"}, "expected host:port", id="dns has no usual port"),
        pytest.param({"url": "dns://h:1"}, "expected host:port", id="dns with two slashes"),
        pytest.param({"url": "dns:///h:1/a"}, "expected host:port", id="dns with a prefix"),
        pytest.param({"url": "dns:///http://h:1"}, "expected host:port", id="dns of an url"),
        pytest.param(
            {"url": "dns:///h:1", "protocol": "http"}, "is one of grpc, but protocol is 'http'", id="dns, http"
        ),
        pytest.param({"url": "grpc://h"}, "expected host:port", id="grpc has no usual port"),
        pytest.param({"url": "http://h:1", "protocol": "grpc"}, "is one of http, but protocol is 'grpc'", id="both"),
        pytest.param({"url": "grpc://h:1/a"}, "gRPC has no path prefix; expected h:1", id="a prefix over gRPC"),
        pytest.param({"url": "http://h:1", "tls": Tls()}, "not encrypted, but tls is given; expected https", id="tls"),
        pytest.param({"headers": {"a b": "c"}}, "header 'a b': expected a name", id="name"),
        pytest.param({"headers": {"x": "a\nb"}}, "header x: expected a value of printable ASCII", id="line break"),
        pytest.param({"headers": {"x": "é"}}, "header x: expected a value", id="not ASCII"),
        pytest.param({"headers": {"x": ""}}, "header x: expected a value", id="no value"),
        pytest.param({"headers": {"X": "a", "x": "b"}}, "header x: given twice", id="twice"),
        pytest.param({"headers": {"Content-Length": "1"}}, "header content-length: the client sets it", id="length"),
        pytest.param({"headers": {"grpc-timeout": "1S"}}, "header grpc-timeout: the client sets it", id="gRPC's own"),
        pytest.param({"headers": {"x-bin": "a"}}, "header x-bin: gRPC takes names in -bin for binary", id="binary"),
    ],
)
def test_wrong_arguments_are_one_line_errors(call: Call, given: dict[str, Any], message: str) -> None:
    with pytest.raises(CodetrError, match=message) as caught:
        call("detect", b"a", **given)
    assert "\n" not in str(caught.value)


def test_a_password_in_a_url_is_not_shown(call: Call) -> None:
    with pytest.raises(CodetrError, match="credentials travel in headers") as caught:
        call("detect", b"a", url="https://user:s3cret@h:1")
    assert "s3cret" not in str(caught.value)


def test_headers_are_copied() -> None:
    headers = {"X-A": "1"}
    kept = options.Options(headers=headers).headers
    headers["x-b"] = "2"
    assert kept == {"x-a": "1"}


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("10.0.0.1", False), ("gpu", False),
     ("a.localhost", True), ("localhost.example", False)],
)  # fmt: skip
def test_this_machine_is_known(host: str, local: bool) -> None:
    url = f"[{host}]:1" if ":" in host else f"{host}:1"
    assert wire.endpoint(url, None, 1.0, "codetr").is_local == local
