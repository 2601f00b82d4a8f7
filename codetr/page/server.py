"""The page's own HTTP server: its three files, the servers' state, and pictures to detect on."""

from __future__ import annotations

import asyncio
import logging
import signal
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from aiohttp import web

from codetr.page import guard
from codetr.page.answers import answer, failure, shown_picture
from codetr.page.models import Servers
from codetr.page.options import PageOptions
from codetr_client.errors import CodetrError
from serving.addresses import bracketed, check_port, resolve_host

# All that the server reads from a disk, at its start, by the path under which the page asks for it.
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_STATIC = Path(__file__).parent / "static"
MAX_UNDER_WAY = 8  # pictures in memory at a time; others wait outside
MAX_DRAWN = 2  # at a time; a decoded picture of 64 megapixels takes some 700 MB
UPLOAD_TIMEOUT = 120.0  # seconds for a picture to arrive
SHUTDOWN_TIMEOUT = 5.0  # seconds for what is under way at the end

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def run_page(options: PageOptions, announce: Callable[[str], None], report: Callable[[str], None]) -> None:
    """Serve the page until SIGINT, SIGTERM or SIGHUP.

    Args:
        options: what to serve.
        announce: called with the page's url once it answers.
        report: called with what went wrong in this program, which no browser is told.

    Raises:
        CodetrError: the address or an option cannot be used.
    """
    asyncio.run(_run(options, announce, report))


async def _run(options: PageOptions, announce: Callable[[str], None], report: Callable[[str], None]) -> None:
    address = resolve_host(options.host)
    check_port("page's", address, options.port, "--port")
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, ended.set)
    names = guard.names_of(address, options.host, options.allowed_hosts)
    servers = Servers(options.urls, options.models, options.reach)
    page = Page(options, servers, names, address.is_loopback, report)
    quiet = logging.getLogger("codetr.page")  # what is no HTTP is no news; faults of this program are reported
    quiet.disabled = True
    runner = web.AppRunner(
        page.application(),
        access_log=None,
        logger=quiet,
        auto_decompress=False,  # no picture needs it
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
    )
    try:
        await runner.setup()
        site = web.TCPSite(runner, address.ip, options.port)
        try:
            await site.start()
        except OSError as error:
            raise CodetrError(f"--port {options.port}: cannot be used ({error.strerror}); name another") from error
        announce(f"http://{bracketed(address.local_ip)}:{runner.addresses[0][1]}/")
        await ended.wait()
    finally:
        await runner.cleanup()
        await servers.close()


class Page:
    """Answers the page's requests."""

    def __init__(
        self,
        options: PageOptions,
        servers: Servers,
        names: frozenset[str],
        loopback: bool,
        report: Callable[[str], None],
    ) -> None:
        self._options = options
        self._servers = servers
        self._names = names
        self._loopback = loopback
        self._report = report
        self._under_way = asyncio.Semaphore(MAX_UNDER_WAY)
        self._drawn = asyncio.Semaphore(MAX_DRAWN)
        self._files = {path: ((_STATIC / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}

    def application(self) -> web.Application:
        """Return what aiohttp runs."""
        application = web.Application(middlewares=[self._middleware()], client_max_size=self._options.max_bytes)
        application.on_response_prepare.append(_add_headers)
        for path in self._files:
            application.router.add_get(path, self._file)
        application.router.add_get("/api/state", self._state)
        application.router.add_post("/api/detect", self._detect)
        return application

    def _middleware(self) -> Any:
        @web.middleware
        async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
            refused = guard.refusal(request.method, request.path, request.headers, self._names, self._loopback)
            if refused is not None:
                return _error(refused.status, refused.reason)
            try:
                return await handler(request)
            except web.HTTPRequestEntityTooLarge:
                return self._too_large()
            except web.HTTPException as error:
                return _error(error.status, error.reason)
            except Exception:
                self._report(traceback.format_exc())
                return _error(500, "the page's own server failed; its terminal says why")

        return guarded

    async def _file(self, request: web.Request) -> web.Response:
        content, kind = self._files[request.path]
        return web.Response(body=content, content_type=kind, charset="utf-8", headers={"Cache-Control": "no-cache"})

    async def _state(self, request: web.Request) -> web.Response:
        settings = {
            "score_threshold": self._options.score_threshold,
            "lowest_score": self._options.lowest_score,
            "max_bytes": self._options.max_bytes,
        }
        return web.json_response({"servers": await self._servers.state(), "settings": settings})

    async def _detect(self, request: web.Request) -> web.Response:
        key = request.query.get("model", "")
        model = self._servers.find(key)
        if model is None:
            return _error(404, f"no model {key!r} here any more; choose another", again=True)
        if (request.content_length or 0) > self._options.max_bytes:
            return self._too_large()
        async with self._under_way:
            try:
                content = await asyncio.wait_for(request.read(), UPLOAD_TIMEOUT)
            except asyncio.TimeoutError:
                return _error(408, f"the picture did not arrive within {UPLOAD_TIMEOUT:g} s", again=True)
            except (web.RequestPayloadError, ConnectionError):
                return _error(400, "the picture did not arrive whole", again=True)
            try:
                async with model.client() as client:
                    start = perf_counter()
                    found = await client.detect(content, self._options.lowest_score)
                    seconds = perf_counter() - start
                    class_names = await client.class_names()
            except CodetrError as error:
                status, document = failure(error)
                return web.json_response(document, status=status)
            model.answered(seconds)
            async with self._drawn:  # only what the server has accepted is decoded here
                shown = await asyncio.to_thread(shown_picture, content)
                document = await asyncio.to_thread(answer, found, class_names, shown, seconds)
            return web.json_response(document)

    def _too_large(self) -> web.Response:
        return _error(413, f"the picture has more than the {self._options.max_bytes} bytes that this page takes")


def _error(status: int, reason: str, again: bool = False) -> web.Response:
    return web.json_response({"error": reason, "again": again}, status=status)


async def _add_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    response.headers.update(guard.HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
