"""Servers as a cluster has its pods: the same ports, each at an address of its own of loopback."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from perf.connection import Connection
from perf.server.metrics import difference
from serving.addresses import free_ports
from serving.contract import ENSEMBLE
from serving.launch import ServerOptions, TritonServer, start_server

# Linux answers for all of 127.0.0.0/8.
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")


class Servers:
    """Real tritonservers on one repository, by address; all are ended with the block."""

    def __init__(self, addresses: Sequence[str] = ADDRESSES) -> None:
        self.addresses = tuple(addresses)
        self.ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
        self.running: dict[str, TritonServer] = {}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *error: object) -> None:
        if self.running:
            with ThreadPoolExecutor(len(self.running)) as pool:  # each waits a little for connections of the proxy
                list(pool.map(lambda address: self.running.pop(address).stop(), list(self.running)))

    def start(self, repository: Path, addresses: Sequence[str] | None = None) -> None:
        """Start servers, at every address if none is named, and wait until they are ready."""
        wanted = self.addresses if addresses is None else tuple(addresses)
        for address in wanted:
            ports = self.ports
            options = ServerOptions(repository, address, ports["http"], ports["grpc"], ports["metrics"])
            self.running[address] = start_server(options)
        for address in wanted:
            self.running[address].wait_ready(120)

    def kill(self, address: str) -> None:
        """End a server as a crash does: it and its steps are gone at once."""
        server = self.running.pop(address)
        with suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)
        server.stop()

    def end(self, address: str) -> None:
        """End a server as SIGTERM of `codetr serve` does: refuse, answer what is under way, then end."""
        server = self.running.pop(address)
        server.drain(lambda: True)
        server.stop()

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Return Triton's statistics by address."""
        found = {}
        for address, server in self.running.items():
            with Connection(server.grpc_url, "grpc") as connection:
                found[address] = connection.statistics()
        return found


def answered(before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Return how many requests the ensemble of each server has answered between two statistics."""
    counts = {}
    for address, later in after.items():
        one, two = (_ensemble(each) for each in (before.get(address, {}), later))
        counts[address] = difference(one, two, "success", "count")
    return counts


def _ensemble(statistics: dict[str, Any]) -> dict[str, Any]:
    return next((each for each in statistics.get("model_stats", []) if each["name"] == ENSEMBLE), {})
