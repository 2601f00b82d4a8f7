"""What `check_service` makes of a server's answers; tests/e2e/test_faults.py asks a real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from serving import health
from serving.health import check_service
from serving.launch import free_ports
from tests.clients.fakes import QuietServer

Answer = tuple[int, Any]


@contextmanager
def serving(answer: Callable[[str], Answer], bodies: list[bytes] | None = None) -> Iterator[str]:
    """Run an HTTP server that gives `answer` for each path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if bodies is not None and body:
                bodies.append(body[int(self.headers["Inference-Header-Content-Length"]) :])
            status, content = answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        do_POST = do_GET  # noqa: N815  # http.server's name

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002  # http.server's name

    server = QuietServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def statistics(count: int) -> Answer:
    return 200, {"model_stats": [{"inference_stats": {"success": {"count": count}}}]}


@pytest.mark.parametrize(
    ("ready", "infer", "expected"),
    [
        pytest.param(200, (200, {"outputs": []}), [], id="well"),
        pytest.param(200, (503, {"error": "Exceeds maximum queue size"}), [], id="busy"),
        pytest.param(400, (200, {}), ["the server at URL is not ready: a model is loading or failed to load"], id="no"),
        pytest.param(
            200,
            (500, {"error": "Stub process 'codetr_detector_0_0' is not healthy."}),
            ["codetr cannot answer: Stub process 'codetr_detector_0_0' is not healthy."],
            id="dead step",
        ),
        pytest.param(
            200,
            (500, {"error": "in ensemble 'codetr', ValueError: no\n\nAt:\n  /srv/model.py(3): execute\n"}),
            ["codetr cannot answer: in ensemble 'codetr', ValueError: no"],
            id="a step's exception",
        ),
        pytest.param(200, (404, ["?"]), ['codetr cannot answer: ["?"]'], id="no message"),
    ],
)
def test_answers_become_faults(ready: int, infer: Answer, expected: list[str]) -> None:
    def answer(path: str) -> Answer:
        return (ready, {}) if path == "/v2/health/ready" else statistics(1) if path.endswith("stats") else infer

    with serving(answer) as url:
        assert check_service(url) == [line.replace("URL", url) for line in expected]


@pytest.mark.parametrize("busy", [True, False])
def test_a_busy_engine_is_not_taken_for_one_that_hangs(busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, counts, over = health.ask, iter(range(9)), threading.Event()

    def answer(path: str) -> Answer:
        if path.endswith("infer"):
            over.wait(60)
        elif path.endswith("stats"):
            return statistics(next(counts) if busy else 7)
        return 200, {}

    # only the answer that never comes is waited for so briefly
    wait = {True: 0.2, False: 60.0}
    monkeypatch.setattr(
        health, "ask", lambda url, path, timeout, *rest: ask(url, path, wait[path.endswith("infer")], *rest)
    )
    with serving(answer) as url:
        try:
            assert check_service(url, timeout=7) == ([] if busy else ["codetr gave no answer within 7 s"])
        finally:
            over.set()


def test_each_engine_is_asked_with_an_image_that_can_be_read() -> None:
    bodies: list[bytes] = []
    with serving(lambda path: (404 if path == "/v2/models/b/infer" else 200, {"error": "unknown"}), bodies) as url:
        assert check_service(url, ["a", "b"]) == ["b cannot answer: unknown"]
    assert len(bodies) == 2
    assert int.from_bytes(bodies[0][:4], "little") == len(bodies[0]) - 4
    with Image.open(BytesIO(bodies[0][4:])) as image:
        assert (image.size, image.format) == ((8, 8), "PNG")
        image.load()


def test_a_server_that_is_away_is_a_fault() -> None:
    (port,) = free_ports(1)
    (fault,) = check_service(f"127.0.0.1:{port}")
    assert fault.startswith(f"no server answers HTTP at 127.0.0.1:{port}: ")
