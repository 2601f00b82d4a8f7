"""A name that stands for several servers: requests are spread over those that are there."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from codetr_client import AsyncCoDetrClient, CoDetrClient
from perf.cluster.names import NameServer
from serving.addresses import free_ports
from tests.clients.conftest import HANGS

ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Is ready, and counts how often it was asked."""

    def __init__(self, address: str, asked: Counter[str]) -> None:
        self.address, self.asked = address, asked

    def ModelReady(self, request, context):  # noqa: N802 - KServe's name
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelMetadata(self, request, context):  # noqa: N802
        self.asked[self.address] += 1
        return service_pb2.ModelMetadataResponse(name=request.name)


class Cluster:
    """Servers at the addresses of one name; `url` is that of the clients."""

    def __init__(self, names: NameServer) -> None:
        (self.port,) = free_ports(1)
        self.names = names
        self.url = f"dns://127.0.0.1:{names.port}/codetr-pods:{self.port}"
        self.asked: Counter[str] = Counter()
        self.servers: dict[str, grpc.Server] = {}

    def start(self, address: str) -> None:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Triton(address, self.asked), server)
        server.add_insecure_port(f"{address}:{self.port}")
        server.start()
        self.servers[address] = server
        if address not in self.names.addresses:
            self.names.addresses.append(address)

    def stop(self, address: str) -> None:
        self.names.addresses.remove(address)
        self.servers.pop(address).stop(None).wait()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with NameServer([]) as names:
        cluster = Cluster(names)
        for address in ADDRESSES:
            cluster.start(address)
        yield cluster
        for address in list(cluster.servers):
            cluster.stop(address)


def ask_until_asked(cluster: Cluster, client: CoDetrClient, *addresses: str) -> None:
    """Ask until each of these servers was asked, which takes as long as their connections."""
    until = time.monotonic() + HANGS
    while not all(cluster.asked[address] for address in addresses):
        assert time.monotonic() < until, dict(cluster.asked)
        client.check()


def test_requests_go_to_every_server(cluster: Cluster) -> None:
    with CoDetrClient(cluster.url) as client:
        ask_until_asked(cluster, client, *ADDRESSES)


def test_requests_of_asyncio_do_too(cluster: Cluster) -> None:
    async def ask() -> None:
        async with AsyncCoDetrClient(cluster.url) as client:
            while len(cluster.asked) < len(ADDRESSES):
                await client.check()

    asyncio.run(asyncio.wait_for(ask(), HANGS))


def test_a_server_that_goes_is_left_out_and_one_that_comes_is_found(cluster: Cluster) -> None:
    with CoDetrClient(cluster.url, retries=5) as client:
        ask_until_asked(cluster, client, *ADDRESSES)
        cluster.start("127.0.0.5")  # found when the name is asked for again: once a connection ends
        cluster.stop("127.0.0.3")
        cluster.asked.clear()
        ask_until_asked(cluster, client, "127.0.0.2", "127.0.0.4", "127.0.0.5")
        assert "127.0.0.3" not in cluster.asked


def test_a_plain_address_keeps_to_one_server(cluster: Cluster) -> None:
    with CoDetrClient(f"127.0.0.2:{cluster.port}") as client:
        for _ in range(9):
            client.check()
    assert dict(cluster.asked) == {"127.0.0.2": 9}
