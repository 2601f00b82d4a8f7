"""The clients and a real tritonserver: TLS, the wrong port, and a server that is killed and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from codetr_client import AsyncCoDetrClient, CoDetrClient, Tls, errors
from codetr_client.wire import Protocol
from serving.launch import LOOPBACK, ServerOptions, TritonServer, free_ports, start_server
from tests.clients import fakes
from tests.clients.fakes import Certificates
from tests.e2e.conftest import killed_server
from tests.tiny_engine import MAX_DETECTIONS

pytestmark = pytest.mark.server


@pytest.fixture(autouse=True)
def _patient_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """What speaks at a port is seen on a busy machine too."""
    monkeypatch.setattr("codetr_client.probe.SECONDS", 60.0)


def picture() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (40, 30), (255, 255, 255)).save(buffer, "PNG")
    return buffer.getvalue()


def detect(url: str, protocol: Protocol | None = None, **options: Any) -> set[int]:
    """Return how many detections the client and its asyncio twin find."""

    async def awaited() -> int:
        async with AsyncCoDetrClient(url, protocol, timeout=60, **options) as client:
            await client.check()
            return len(await client.detect(picture()))

    with CoDetrClient(url, protocol, timeout=60, **options) as client:
        client.check()
        return {len(client.detect(picture())), asyncio.run(awaited())}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return fakes.make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def encrypted(tiny_repository: Path, certificates: Certificates) -> Iterator[TritonServer]:
    """A server that speaks gRPC over TLS with clients whose certificates its CA signed."""
    extra = [
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={certificates.server_pem}",
        f"--grpc-server-key={certificates.server_key}",
        f"--grpc-root-cert={certificates.ca_pem}",
    ]
    with killed_server(tiny_repository, extra) as server:
        yield server


@contextlib.contextmanager
def https(server: TritonServer, certificates: Certificates, prefix: str) -> Iterator[int]:
    """Run what stands before Triton's HTTP, which has no TLS: it ends TLS and cuts a path prefix off."""
    host, port = server.http_url.rsplit(":", 1)

    def copy(source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(65536):
                target.sendall(change(content))
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def handle(connection: socket.socket) -> None:
        with socket.create_connection((host, int(port))) as behind:
            cut = lambda content: content.replace(f" {prefix}/v2/".encode(), b" /v2/")  # noqa: E731
            thread = threading.Thread(target=copy, args=(connection, behind, cut))
            thread.start()
            copy(behind, connection, lambda content: content)
            thread.join()

    with fakes.raw_server(handle, certificates.server_context(wants_client=True)) as port_of_proxy:
        yield port_of_proxy


def test_mutual_tls_over_grpc(encrypted: TritonServer, certificates: Certificates) -> None:
    url = f"grpcs://{encrypted.grpc_url}"
    tls = Tls(certificates.ca_pem, certificates.client_pem, certificates.client_key)
    assert detect(url, tls=tls) == {MAX_DETECTIONS}
    with pytest.raises(errors.ServerTlsError, match="wants a client certificate"):
        detect(url, tls=Tls(certificates.ca_pem))
    with pytest.raises(errors.ServerTlsError, match="give that CA's file as tls ca_file"):
        detect(url)
    with pytest.raises(errors.ServerTlsError, match="is encrypted; give grpcs://"):
        detect(encrypted.grpc_url)


def test_mutual_tls_over_http_behind_a_proxy_with_a_prefix(encrypted: TritonServer, certificates: Certificates) -> None:
    tls = Tls(certificates.ca_pem, certificates.client_pem, certificates.client_key)
    with https(encrypted, certificates, "/vision") as port:
        assert detect(f"https://localhost:{port}/vision", tls=tls) == {MAX_DETECTIONS}
        with pytest.raises(errors.ServerProtocolError, match=r"404.*behind a proxy the right path prefix"):
            detect(f"https://localhost:{port}/other", tls=tls)
        with pytest.raises(errors.ServerTlsError, match="wants a client certificate"):
            detect(f"https://localhost:{port}/vision", tls=Tls(certificates.ca_pem))


def test_the_wrong_port_is_named(both: TritonServer) -> None:
    metrics = both.metrics_url.split("//")[1].split("/")[0]
    with pytest.raises(errors.ServerProtocolError, match=r"it speaks HTTP/1, not gRPC; give protocol http"):
        detect(both.http_url, "grpc")
    with pytest.raises(errors.ServerProtocolError, match=r"it speaks gRPC, not HTTP/1; give protocol grpc"):
        detect(both.grpc_url, "http")
    with pytest.raises(errors.ServerProtocolError, match=r"HTTP/1, not gRPC; Triton's port 8002 is for its metrics"):
        detect(metrics, "grpc")
    with pytest.raises(errors.ServiceError, match="Triton's metrics page"):
        detect(metrics, "http")


@pytest.mark.slow
def test_clients_outlive_their_killed_server(tiny_repository: Path) -> None:
    ports, stop, kills = free_ports(3), threading.Event(), 3
    counts: dict[Protocol, list[int]] = {"grpc": [], "http": []}

    def ask(url: str, protocol: Protocol) -> None:
        with CoDetrClient(url, protocol, timeout=120, retries=1000) as client:
            while not stop.is_set():
                counts[protocol].append(len(client.detect(picture())))

    def start() -> TritonServer:
        server = start_server(ServerOptions(tiny_repository, LOOPBACK, *ports))
        server.wait_ready(120)
        return server

    def wait_for_answers(number: int) -> None:
        before = {protocol: len(answers) for protocol, answers in counts.items()}
        while any(len(answers) < before[protocol] + number for protocol, answers in counts.items()):
            assert not any(call.done() for call in calls), "a client gave up"
            time.sleep(0.01)

    server = start()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ask, server.grpc_url, "grpc"), pool.submit(ask, server.http_url, "http")]
        try:
            for _ in range(kills):
                wait_for_answers(50)
                server.process.kill()
                server.stop()
                server = start()
            wait_for_answers(50)
        finally:
            stop.set()
            for call in calls:
                call.result(120)
            server.stop()
    print(
        f"killed {kills} times; answered over gRPC {len(counts['grpc'])}, over HTTP {len(counts['http'])}; none failed"
    )
    assert {count for answers in counts.values() for count in answers} == {MAX_DETECTIONS}
