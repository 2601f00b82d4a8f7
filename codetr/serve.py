"""`codetr serve`: run a repository on a tritonserver."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, cast

import typer
from rich.console import Console

from codetr.lossy import LossyStderr
from codetr.shown import line, new_console, shown
from serving.errors import CodetrError
from serving.launch import LOOPBACK, ServerOptions, TritonServer, start_server
from serving.runtime import KEY_VARIABLE
from serving.server_log import News, how_it_ended
from serving.tls import TlsFiles
from serving.watchdog import Watchdog


def serve(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="A folder written by `codetr build`.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = LOOPBACK,
    http_port: Annotated[int, typer.Option(help="Port for HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port for Prometheus metrics.")] = 8002,
    load_timeout: Annotated[float, typer.Option(min=1, help="Seconds in which the models must be loaded.")] = 1800.0,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate of the gRPC endpoint, PEM; HTTP then listens on loopback only.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Authority that clients must show a certificate of, PEM.")] = None,
    gpus: Annotated[
        str | None, typer.Option(help="GPUs that the engines get: numbers such as 0,1, or all, which is the default.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the server's whole log.")] = False,
    triton_options: Annotated[list[str] | None, typer.Argument(help="Options for tritonserver, behind `--`.")] = None,
) -> None:
    """Serve a repository until interrupted; the exit status is the server's."""
    options = ServerOptions(
        repository,
        host,
        http_port,
        grpc_port,
        metrics_port,
        tuple(triton_options or ()),
        tls=_tls_files(tls_cert, tls_key, tls_ca),
        admin_key=os.environ.get(KEY_VARIABLE) or None,
        gpus=gpus,
    )
    status = run_server(options, load_timeout, verbose)
    raise typer.Exit(status if status >= 0 else 128 - status)


def run_server(options: ServerOptions, load_timeout: float, verbose: bool) -> int:
    """Start a server, say when it is ready and what it warns of, and return its exit status when it has ended.

    SIGINT, SIGTERM and SIGHUP let it finish what it does; a second one ends it at once.

    Raises:
        CodetrError: it cannot be started or does not become ready; says why.
    """
    console = new_console(stderr=True)
    console.soft_wrap = True
    console.file = cast(IO[str], LossyStderr())
    is_serving = False

    news = News()

    def show(said: str) -> None:
        told = said if verbose else news.of(said, time.monotonic()) if is_serving else None
        if told is not None:
            console.print(shown(told.expandtabs()))

    watchdog: Watchdog | None = None
    signals = _Signals()
    server = start_server(options, show)
    try:
        signals.forward_to(server)
        console.print(shown(f"starting {server.binary} on {options.repository}"))
        with console.status("loading models") as status:
            server.wait_ready(load_timeout, lambda waited: status.update(f"loading models, {waited:.0f} s"))
        is_serving = True
        signals.keep()
        _announce(console, server)
        watchdog = server.watch(lambda said: console.print(shown(f"warning: {said}")))
        server.follow(
            lambda said, is_wrong: console.print(shown(f"warning: {said}" if is_wrong else said)), load_timeout
        )
        while not signals.received and server.process.poll() is None:
            time.sleep(0.1)
        server.drain(lambda: server.process.poll() is None)
    except CodetrError:
        if not signals.received:  # a server told to stop while it loads has not failed
            raise
    finally:
        exit_status = server.stop()
    if exit_status and not signals.received:
        was_given_up = watchdog is not None and watchdog.has_given_up
        how = "was ended, because it loads nothing anew any more" if was_given_up else how_it_ended(exit_status)
        console.print(line(shown("error:", "bold red"), f" tritonserver {how}"))
    return exit_status


class _Signals:
    """Hands the signals that end a program on to the server, and keeps what it received."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._server: TritonServer | None = None
        self._hands_on = True
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # which nohup sets
                signal.signal(number, self._receive)

    def forward_to(self, server: TritonServer) -> None:
        """Hand on to a server what comes from now on, and what came while it was started."""
        self._server = server
        if self.received:
            self._hand_on(self.received[-1])

    def keep(self) -> None:
        """Hand nothing on from now on but a second signal, which ends the server at once."""
        self._hands_on = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) > 1 and self._server is not None and self._server.process.poll() is None:
            self._server.process.kill()  # asked twice: at once
        self._hand_on(number)

    def _hand_on(self, number: int) -> None:
        if self._server is not None and self._hands_on:
            # SIGHUP would end tritonserver in the middle of what it does
            self._server.tell_to_end(signal.SIGTERM if number == signal.SIGHUP else number)


def _announce(console: Console, server: TritonServer) -> None:
    places = f"HTTP {server.http_url}, gRPC {server.grpc_url}, metrics {server.metrics_url}"
    console.print(line(shown("ready", "green"), f": {places}"))
    notes = list(server.notes)
    if os.getuid() == 0 and not _in_container(os.environ):
        notes.append("this runs as root, and so does what decodes strangers' images; start it as a user without rights")
    for note in notes:
        console.print(shown(f"warning: {note}"))


def _in_container(environment: Mapping[str, str]) -> bool:
    files = (Path("/.dockerenv"), Path("/run/.containerenv"))
    return "KUBERNETES_SERVICE_HOST" in environment or any(file.exists() for file in files)


def _tls_files(cert: Path | None, key: Path | None, authority: Path | None) -> TlsFiles | None:
    if cert is not None and key is not None:
        return TlsFiles(cert, key, authority)
    if cert is None and key is None and authority is None:
        return None
    raise CodetrError("--tls-cert and --tls-key belong together, and --tls-ca needs both")
