"""`codetr serve`: run a repository on a tritonserver."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from serving.errors import CodetrError
from serving.launch import LOOPBACK, ServerOptions, TritonServer, is_warning, start_server


def serve(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="A folder written by `codetr build`.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for every network.")] = LOOPBACK,
    http_port: Annotated[int, typer.Option(help="Port for HTTP.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port for Prometheus metrics.")] = 8002,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the server's whole log.")] = False,
    triton_options: Annotated[list[str] | None, typer.Argument(help="Options for tritonserver, behind `--`.")] = None,
) -> None:
    """Serve a repository until interrupted; the exit status is the server's."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    is_serving = False

    def show(line: str) -> None:
        if verbose or (is_serving and is_warning(line)):
            console.print(line, markup=False)

    options = ServerOptions(repository, host, http_port, grpc_port, metrics_port, tuple(triton_options or ()))
    server = start_server(options, show)
    signals = _forward_signals(server)
    console.print(f"starting {server.binary} on {repository}")
    try:
        with console.status("loading models") as status:
            server.wait_ready(on_wait=lambda waited: status.update(f"loading models, {waited:.0f} s"))
        is_serving = True
        console.print(f"[green]ready[/]: HTTP {server.http_url}, gRPC {server.grpc_url}, metrics {server.metrics_url}")
        server.process.wait()
    except CodetrError:
        if not signals:  # a server told to stop while it loads has not failed
            raise
    finally:
        exit_status = server.stop()
    raise typer.Exit(exit_status if exit_status >= 0 else 128 - exit_status)


def _forward_signals(server: TritonServer) -> list[int]:
    """Hand SIGINT and SIGTERM on to the server; return the list that the signals received are added to."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if server.process.poll() is None:
            server.process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    return received
