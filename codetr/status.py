"""`codetr status`: what a running server says about itself, once, live, or as an exit status."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from codetr_client.text import printable
from serving.errors import CodetrError

if TYPE_CHECKING:
    from perf.status import Address, EngineStatus, GpuStatus, Reading, Status, StepStatus


def status(
    url: Annotated[str | None, typer.Option(help="host:port of HTTP; 8000 on this machine if not given.")] = None,
    metrics_url: Annotated[
        str | None, typer.Option(help="The server's metrics page; port 8002 of the same host if not given.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of an ensemble; every one if not given.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for one answer.")] = 5.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="Span of rates and latencies.")] = 1.0,
    check: Annotated[
        bool, typer.Option("--check", help="Only whether every step answers: exit status 0 or 1.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON; with --watch one line each time.")] = False,
) -> None:
    """Show how a running server is: readiness, versions, time by step, queues, failures."""
    from perf import status as state

    address = state.Address.of(url, metrics_url, timeout)
    if check:
        if faults := state.check(address, model):
            raise CodetrError("; ".join(faults))
        return
    if watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(address, model, seconds, as_json)
        return
    faults = state.check(address, model)
    before = state.read(address, model)
    time.sleep(seconds)
    found = state.status(state.read(address, model), address, before, faults)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        Console(highlight=False).print(shown(found))


def _watch(address: Address, model: str | None, seconds: float, as_json: bool) -> None:
    """Show the server's state every so many seconds, also that it is away."""
    from rich.live import Live

    from perf import status as state

    before: Reading | None = None
    picture: RenderableType
    with (
        Live(console=Console(highlight=False), auto_refresh=False) if not as_json else contextlib.nullcontext() as live
    ):
        while True:
            try:
                now = state.read(address, model)
                found = state.status(now, address, before)
                line, picture = found.to_json(), shown(found)
                before = now
            except CodetrError as error:
                line, picture = {"address": address.http, "error": str(error)}, Text(printable(error), "red")
                before = None
            if live is None:
                typer.echo(json.dumps(line))
            else:
                live.update(picture, refresh=True)
            time.sleep(seconds)


def shown(found: Status) -> Group:
    """Return what is printed of a server's state."""
    parts: list[RenderableType] = [_heading(found)]
    parts += [Text(printable(fault), "red") for fault in found.faults or ()]
    for engine in found.engines:
        parts += [_table(engine, found.seconds), *_refusals(engine)]
    parts += [_gpu(gpu) for gpu in found.gpus]
    return Group(*parts, *(Text(printable(note), "yellow") for note in found.notes))


def _heading(found: Status) -> Text:
    state = "ready" if found.ready else "not ready"
    if found.ready and found.faults is not None:
        state = "ready, but not every engine answers" if found.faults else "ready, every engine answers"
    style = "green" if found.ready and not found.faults else "red"
    return Text.assemble(printable(f"{found.server} {found.version} at {found.address}: "), (state, style))


def _table(engine: EngineStatus, seconds: float | None) -> Table:
    about = ", ".join(f"{key} {value}" for key, value in engine.about.items())
    span = "since the start" if seconds is None else f"over {seconds:.1f} s; dim, done and failed: since the start"
    table = Table(
        title=Text(printable(f"{_named(engine)}: {about}" if about else _named(engine))),
        title_justify="left",
        caption=f"times in ms, means {span}",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,  # it fits into 80 columns, with the names of versions
        pad_edge=False,
    )
    table.add_column("model", no_wrap=True)
    for name in ("img/s", "queue", "input", "infer", "output", "batch", "waits", "done", "failed"):
        table.add_column(name, justify="right")
    for model in engine.models:
        lately = model.lately if model.lately is not None and model.lately.requests else None
        rate = "" if model.lately is None or not seconds else f"{model.lately.images / seconds:.1f}"
        times = [Text(value, "" if lately else "dim") for value in _times(lately or model.since_start)]
        waiting = "" if model.waiting is None else str(model.waiting)
        failed = Text(str(model.since_start.failures), "red" if model.lately and model.lately.failures else "")
        table.add_row(Text(printable(model.name)), rate, *times, waiting, str(model.since_start.requests), failed)
    return table


def _named(engine: EngineStatus) -> str:
    version = f" version {engine.version}" if engine.version else ""
    return f"{engine.name}{version}" + (f" (version {engine.loading} is loaded beside it)" if engine.loading else "")


def _times(step: StepStatus) -> list[str]:
    if not step.requests:
        return [""] * 5
    phases = (step.queue_ms, step.compute_input_ms, step.compute_infer_ms, step.compute_output_ms)
    return [*(f"{value:.2f}" for value in phases), f"{step.batch:.1f}" if step.batch else ""]


def _refusals(engine: EngineStatus) -> list[Text]:
    causes = ", ".join(f"{count} {cause}" for cause, count in sorted(engine.refused_images.items()))
    return [Text(printable(f"refused images: {causes}"))] if causes else []


def _gpu(gpu: GpuStatus) -> Text:
    parts = [f"GPU {gpu.uuid}"]
    if gpu.utilization is not None:
        parts.append(f"{gpu.utilization:.0%} busy")
    if gpu.memory_used is not None and gpu.memory_total is not None:
        parts.append(f"{gpu.memory_used / 2**30:.1f} of {gpu.memory_total / 2**30:.1f} GiB")
    if gpu.power is not None:
        parts.append(f"{gpu.power:.0f} W")
    return Text(printable(", ".join(parts)))
