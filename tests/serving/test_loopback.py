from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from serving.loopback import environment_to_ask, is_loopback, read_url


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


def test_other_programs_ask_this_machine_directly_and_others_through_the_proxy() -> None:
    proxies = {"http_proxy": "x", "ALL_PROXY": "y", "grpc_proxy": "z"}
    environment = {**proxies, "no_proxy": "mine", "PATH": "/bin"}
    for address in ("localhost:8000", "127.0.0.1:1", "[::1]:8000"):
        assert environment_to_ask(address, environment) == {"no_proxy": "mine", "PATH": "/bin"}
    assert environment_to_ask("box:8000", environment) == environment
