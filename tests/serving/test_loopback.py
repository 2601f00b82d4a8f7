from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from serving.loopback import by_number, environment_to_ask, is_loopback, read_url


@pytest.fixture
def port() -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{self.path} {self.headers.get('key')}".encode())

        def log_message(self, *words: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_this_machine_is_asked_directly_and_others_through_the_proxy(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:3128")
    for host in ("127.0.0.1", "localhost"):
        assert read_url(f"http://{host}:{port}/page", 10, {"key": "value"}) == b"/page value"
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    assert read_url("http://elsewhere.invalid/page", 10) == b"http://elsewhere.invalid/page None"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.3.2.1", "::1", "a.localhost"])
def test_loopback_is_told_by_its_spelling(host: str) -> None:
    assert is_loopback(host)
    assert not is_loopback(f"{host}.example.org")


def test_a_name_of_this_machine_becomes_the_number_that_answers(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_number(f"localhost:{port}") == f"127.0.0.1:{port}"

    def both(host: str, port: int, **how: object) -> list[object]:
        return [(0, 0, 0, "", ("::1", port, 0, 0)), (0, 0, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr("socket.getaddrinfo", both)
    connected: list[object] = []

    def connect(address: tuple[str, int], timeout: float) -> nullcontext[None]:
        connected.append(address)
        if address[0] == refusing:
            raise ConnectionRefusedError
        return nullcontext()

    monkeypatch.setattr("socket.create_connection", connect)
    refusing = "::1"
    assert by_number("localhost:81") == "127.0.0.1:81"
    refusing = "127.0.0.1"
    assert by_number("Localhost.:81") == "[::1]:81"
    assert connected == [("::1", 81), ("127.0.0.1", 81), ("::1", 81)]


@pytest.mark.parametrize("address", ["127.0.0.1:81", "[::1]:81", "box:8000", "10.0.0.7:8001"])
def test_other_addresses_stay_as_they_are(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", None)
    assert by_number(address) == address


def test_other_programs_ask_this_machine_directly_and_others_through_the_proxy() -> None:
    proxies = {"http_proxy": "x", "ALL_PROXY": "y", "grpc_proxy": "z"}
    environment = {**proxies, "no_proxy": "mine", "PATH": "/bin"}
    for address in ("localhost:8000", "127.0.0.1:1", "[::1]:8000"):
        assert environment_to_ask(address, environment) == {"no_proxy": "mine", "PATH": "/bin"}
    assert environment_to_ask("box:8000", environment) == environment
