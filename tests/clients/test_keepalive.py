"""Idle connections are probed as often as was asked for, and no more."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from codetr_client import grpc_wire, wire
from codetr_client.client import CoDetrClient
from tests.clients import fakes
from tests.clients.conftest import Call, Server


class Channels:
    """Stands for grpc, or grpc.aio."""

    def insecure_channel(self, target: str, options: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(options)


@pytest.mark.parametrize(("keepalive", "time", "wait"), [(30, 30_000, 20_000), (5.5, 5500, 5500)])
def test_grpc_gets_the_seconds_as_milliseconds(keepalive: float, time: int, wait: int) -> None:
    endpoint = wire.endpoint("h:1", "grpc", 1.0, "codetr", keepalive=keepalive)
    options = grpc_wire.channel(Channels(), None, endpoint)
    assert options["grpc.keepalive_time_ms"] == time
    assert options["grpc.keepalive_timeout_ms"] == wait
    assert options["grpc.enable_http_proxy"] == 0


def test_grpc_probes_nothing_unless_asked() -> None:
    options = grpc_wire.channel(Channels(), None, wire.endpoint("h:1", "grpc", 1.0, "codetr"))
    assert not [name for name in options if "keepalive" in name]


def test_grpc_connects_again_as_soon_as_a_repeat_may_come() -> None:
    """By itself it waits up to two minutes, and lets every call fail meanwhile without trying."""
    options = grpc_wire.channel(Channels(), None, wire.endpoint("h:1", "grpc", 1.0, "codetr"))
    assert options["grpc.initial_reconnect_backoff_ms"] == 100
    assert options["grpc.max_reconnect_backoff_ms"] == 1000


@pytest.mark.parametrize(("keepalive", "expected"), [(None, 0), (30.0, 1)])
def test_sockets_are_probed_too(monkeypatch: pytest.MonkeyPatch, keepalive: float | None, expected: int) -> None:
    seen: list[socket.socket] = []
    connect = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: (seen.append(self), connect(self, address))[1])
    with (
        fakes.http_server(fakes.FakeTriton()) as port,
        CoDetrClient(f"http://127.0.0.1:{port}", keepalive=keepalive) as client,
    ):
        client.detect(b"a")
        assert seen[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == expected
        if expected and hasattr(socket, "TCP_KEEPIDLE"):
            assert seen[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30


def test_a_client_with_keepalive_detects(call: Call, server: Server) -> None:
    assert len(call("detect", b"a", url=server.url, keepalive=300)) == 1
