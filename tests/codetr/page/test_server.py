"""The page's server before fake Tritons: files, pictures, limits, states."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from PIL import Image

import codetr.page
from codetr.page import guard, models, server
from codetr.page.models import Servers
from codetr.page.options import PageOptions, Reach
from perf.access import Access
from tests.clients import fakes
from tests.clients.fakes import FakeTriton, Refusal

STATIC = Path(codetr.page.__file__).parent / "static"
LIMIT = 100_000
Ask = Callable[..., Awaitable[tuple[int, Any]]]


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40)).save(buffer, "JPEG")
    return buffer.getvalue()


class Running:
    """A page, asked as its own script does."""

    def __init__(self, base: str, session: aiohttp.ClientSession, said: list[str]) -> None:
        self.base, self.session, self.said = base, session, said

    async def get(self, path: str, **headers: str) -> tuple[int, bytes, Any]:
        async with self.session.get(self.base + path, headers=headers) as answer:
            return answer.status, await answer.read(), answer.headers

    async def state(self) -> list[dict[str, Any]]:
        return json.loads((await self.get("/api/state"))[1])["servers"]

    async def detect(self, content: Any, model: str = "0:codetr", **headers: str) -> tuple[int, Any]:
        sent = {"Content-Type": guard.BODY_TYPE, **headers}
        async with self.session.post(
            f"{self.base}/api/detect", params={"model": model}, data=content, headers=sent
        ) as answer:
            return answer.status, json.loads(await answer.read())


def with_page(
    use: Callable[[Running], Awaitable[None]],
    *tritons: FakeTriton,
    urls: Sequence[str] = (),
    named: Sequence[str] = (),
    access: Access | None = None,
) -> None:
    """Let `use` ask a page before fake Tritons, at http:// and grpc:// in turns."""

    async def run(addresses: Sequence[str]) -> None:
        reach = Reach(None, 60.0, access or Access())
        options = PageOptions(addresses, named, reach, "127.0.0.1", 0, [], 0.3, 0.05, LIMIT)
        servers = Servers(addresses, named, reach)
        said: list[str] = []
        page = server.Page(options, servers, frozenset({"localhost"}), True, said.append)
        async with TestServer(page.application()) as running, aiohttp.ClientSession() as session:
            await use(Running(str(running.make_url("")).rstrip("/"), session, said))
        await servers.close()

    with ExitStack() as stack:
        found = list(urls)
        for number, triton in enumerate(tritons):
            kind = ("http", "grpc")[number % 2]
            port = stack.enter_context((fakes.http_server, fakes.grpc_server)[number % 2](triton))
            found.append(f"{kind}://127.0.0.1:{port}")
        asyncio.run(run(found))


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is what the servers say, on a busy machine too."""
    monkeypatch.setattr(models, "MAX_WAIT", 120.0)
    monkeypatch.setattr("codetr.page.options.CHECK_TIMEOUT", 120.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """States and lists are asked for each time."""
    for name in ("MAX_AGE", "MODELS_AGE"):
        monkeypatch.setattr(models, name, -1.0)


def test_the_page_is_three_files_and_an_icon_with_the_policy_on_all() -> None:
    async def use(page: Running) -> None:
        for path, (name, kind) in server.FILES.items():
            status, content, headers = await page.get(path)
            assert (status, content) == (200, (STATIC / name).read_bytes())
            assert headers["Content-Type"] == f"{kind}; charset=utf-8"
            assert {key: headers[key] for key in guard.HEADERS} == guard.HEADERS
            assert headers["Cache-Control"] == "no-cache"
        status, _, headers = await page.get("/api/state")
        assert (status, headers["Cache-Control"]) == (200, "no-store")

    with_page(use, FakeTriton())


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py",
        "/%2e%2e/server.py",
        "//etc/passwd",
        "/static/page.js",
        "/page.js/..%2fserver.py",
        "/api",
        "/a.ico",
    ],
)
def test_no_path_leads_to_another_file(path: str) -> None:
    async def use(page: Running) -> None:
        reader, writer = await asyncio.open_connection(*page.base.removeprefix("http://").split(":"))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert b"Content-Security-Policy" in answer

    with_page(use, FakeTriton())


def test_files_name_nothing_outside() -> None:
    for path in STATIC.iterdir():
        urls = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<]*", path.read_text(encoding="utf-8")))
        assert urls <= {"http://www.w3.org/2000/svg"}, path.name  # which names a format and is not asked for


def test_a_picture_is_answered_with_its_boxes() -> None:
    async def use(page: Running) -> None:
        status, found = await page.detect(picture())
        assert status == 200
        assert found["detections"] == [{"box": [1, 2, 30, 40], "score": 0.5, "label": 1, "name": "dog"}]
        assert (found["width"], found["height"]) == (60, 40)
        assert found["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        assert triton.seen[0].images == (picture(),), "as it is"
        assert triton.seen[0].parameters["score_threshold"] == 0.05, "the lowest score"
        (state,) = (await page.state())[0]["models"]
        assert state["latency"]["count"] == 1
        assert state["latency"]["last"] == pytest.approx(found["seconds"] * 1000)

    triton = FakeTriton()
    with_page(use, triton)


def test_only_the_page_itself_sends_pictures() -> None:
    async def use(page: Running) -> None:
        assert (await page.detect(picture(), Origin="http://evil.example"))[0] == 403
        assert (await page.detect(picture(), Host="evil.example"))[0] == 421
        assert (await page.detect(picture(), **{"Content-Type": "text/plain"}))[0] == 415
        assert not triton.seen
        async with page.session.options(f"{page.base}/api/detect", headers={"Origin": "http://evil.example"}) as answer:
            assert answer.status == 403
            assert not [name for name in answer.headers if name.startswith("Access-Control")]

    triton = FakeTriton()
    with_page(use, triton)


def test_pictures_are_bounded_with_and_without_a_length() -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield bytes(LIMIT // 10)

    async def use(page: Running) -> None:
        for content in (bytes(LIMIT + 1), pieces()):
            status, found = await page.detect(content)
            assert (status, found["again"]) == (413, False)
            assert f"more than the {LIMIT} bytes" in found["error"]
        assert (await page.detect(bytes(LIMIT)))[0] == 200
        assert [len(seen.images[0]) for seen in triton.seen] == [LIMIT]

    triton = FakeTriton()
    with_page(use, triton)


def test_a_picture_that_only_the_server_reads_has_boxes_and_no_size() -> None:
    async def use(page: Running) -> None:
        status, found = await page.detect(b"what only the server knows")
        assert (status, found["width"], found["picture"]) == (200, None, None)
        assert len(found["detections"]) == 1

    with_page(use, FakeTriton())


def test_errors_are_one_line_and_say_whether_to_try_again() -> None:
    async def use(page: Running) -> None:
        triton.script = [Refusal("INVALID_ARGUMENT", "the image is\n empty (0 bytes)")]
        assert await page.detect(b"a") == (400, {"error": "the image is empty (0 bytes)", "again": False})
        triton.script = [Refusal("UNAVAILABLE", "the queue is full")]
        status, found = await page.detect(b"a")
        assert (status, found["again"]) == (503, True)
        status, found = await page.detect(b"a", "7:nothing")
        assert (status, found["again"]) == (404, True)
        assert not page.said

    triton = FakeTriton()
    with_page(use, triton)


def test_a_fault_of_the_page_is_told_on_its_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: bytes) -> None:
        raise RuntimeError("a secret path")

    async def use(page: Running) -> None:
        status, found = await page.detect(picture())
        assert (status, found["error"]) == (500, "the page's own server failed; its terminal says why")
        assert "a secret path" in page.said[0]

    monkeypatch.setattr(server, "shown_picture", fail)
    with_page(use, FakeTriton())


def test_models_are_those_of_all_servers() -> None:
    async def use(page: Running) -> None:
        found = await page.state()
        assert [[model["key"] for model in each["models"]] for each in found] == [
            ["0:cars", "0:codetr"], ["1:codetr"],
        ]  # fmt: skip  # a row for each server
        assert [model["fault"] for each in found for model in each["models"]] == [None] * 3
        assert all(each["milliseconds"] > 0 for each in found)
        assert (await page.detect(picture(), "1:codetr"))[0] == 200
        assert (len(first.seen), len(second.seen)) == (0, 1)

    first, second = FakeTriton(), FakeTriton()
    first.ensembles, first.names = {"codetr", "cars"}, ["codetr", "cars", "cars_detector"]
    with_page(use, first, second)


def test_models_that_are_named_are_asked_for_nothing_else() -> None:
    async def use(page: Running) -> None:
        assert [model["name"] for model in (await page.state())[0]["models"]] == ["other"]
        assert not triton.seen_statistics

    triton = FakeTriton()
    with_page(use, triton, named=["other"])


def test_a_server_that_does_not_name_its_models_has_the_usual_one() -> None:
    async def use(page: Running) -> None:
        assert [(model["name"], model["fault"]) for model in (await page.state())[0]["models"]] == [("codetr", None)]

    triton = FakeTriton()
    triton.names = Refusal("UNAVAILABLE", "This protocol is restricted, expecting header 'codetr-admin'")
    with_page(use, triton)


def test_the_key_of_a_server_elsewhere_goes_with_the_question_for_models_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def use(page: Running) -> None:
        await page.state()
        await page.detect(picture())
        assert triton.seen_statistics[0]["codetr-admin"] == "key"
        assert "codetr-admin" not in triton.seen[0].headers

    monkeypatch.setenv("CODETR_ADMIN_KEY", "key")
    triton = FakeTriton()
    with_page(use, triton)


@pytest.mark.usefixtures("impatient")
def test_models_come_and_go_with_the_server() -> None:
    async def use(page: Running) -> None:
        await page.state()
        triton.ensembles, triton.names = {"cars"}, ["cars"]
        assert [model["key"] for model in (await page.state())[0]["models"]] == ["0:cars"]
        assert (await page.detect(picture(), "0:codetr"))[0] == 404
        assert (await page.detect(picture(), "0:cars"))[0] == 200

    triton = FakeTriton()
    with_page(use, triton)


@pytest.mark.usefixtures("impatient")
def test_a_model_that_comes_back_is_asked_for_its_class_names_again() -> None:
    async def use(page: Running) -> None:
        assert (await page.detect(picture()))[1]["detections"][0]["name"] == "dog"
        triton.ready = False
        (model,) = (await page.state())[0]["models"]
        assert "is not ready: it is loading or failed to load" in model["fault"]
        triton.ready, triton.config = True, '["car", "bus"]'
        assert [model["fault"] for model in (await page.state())[0]["models"]] == [None]
        assert (await page.detect(picture()))[1]["detections"][0]["name"] == "bus"

    triton = FakeTriton()
    with_page(use, triton)


def test_class_names_are_those_of_an_engine_that_was_switched(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(page: Running) -> None:
        await page.detect(picture())
        triton.config = '["car", "bus"]'
        assert (await page.detect(picture()))[1]["detections"][0]["name"] == "dog", "remembered for a while"
        monkeypatch.setattr(models, "CLIENT_AGE", -1.0)
        assert (await page.detect(picture()))[1]["detections"][0]["name"] == "bus"

    triton = FakeTriton()
    with_page(use, triton)


def test_a_server_that_is_away_is_said_to_be_so_and_hides_no_other() -> None:
    async def use(page: Running) -> None:
        away, here = await page.state()
        assert away["milliseconds"] is None
        assert "no server answers http at 127.0.0.1:1: connection refused" in away["models"][0]["fault"]
        assert here["models"][0]["fault"] is None
        status, found = await page.detect(picture(), "0:codetr")
        assert (status, found["again"]) == (502, True)

    with_page(use, FakeTriton(), urls=["http://127.0.0.1:1"])


def test_a_server_that_does_not_answer_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(page: Running) -> None:
        silent, here = await page.state()
        while here["models"][0]["fault"] == "not asked yet":  # a busy machine
            silent, here = await page.state()
        assert here["models"][0]["fault"] is None
        assert silent["models"][0]["fault"] == "not asked yet"

    monkeypatch.setattr(models, "MAX_WAIT", 0.3)
    with fakes.raw_server(lambda connection: connection.recv(1 << 20) and connection.recv(1 << 20)) as port:
        with_page(use, FakeTriton(), urls=[f"http://127.0.0.1:{port}"])


def test_credentials_go_to_the_servers_and_not_to_the_page(tmp_path: Path) -> None:
    async def use(page: Running) -> None:
        _, content, headers = await page.get("/api/state")
        _, found = await page.detect(picture())
        assert triton.seen[0].headers["authorization"] == "Bearer secret"
        assert "secret" not in content.decode() + json.dumps(found) + str(headers)

    file = tmp_path / "headers"
    file.write_text("authorization: Bearer secret\n")
    triton = FakeTriton()
    with_page(use, triton, access=Access(header_file=str(file)))


def test_pictures_at_a_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(page: Running) -> None:
        asked = [asyncio.create_task(page.detect(picture())) for _ in range(6)]
        while len(triton.seen) < 2:
            await page.state()
        for _ in range(20):  # time in which the others would arrive
            await page.state()
        assert len(triton.seen) == 2
        go_on.set()
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 6

    def wait() -> Any:
        assert go_on.wait(60)
        return fakes.tensors(1)

    go_on = threading.Event()
    monkeypatch.setattr(server, "MAX_UNDER_WAY", 2)
    triton = FakeTriton()
    triton.script = [wait] * 6
    with_page(use, triton)
