"""`codetr status`: what a running server says about itself, once, live, or as an exit status."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from codetr.shown import new_console
from codetr_client.text import printable
from serving.contract import STEPS, model_name
from serving.errors import CodetrError

if TYPE_CHECKING:
    from perf.status import Address, EngineStatus, GpuStatus, Reading, Status, StepStatus

# What a row of the table takes at most.
_COLUMNS = 80
_WIDE = 10_000
_STEPS = tuple(model_name(role, "") for role in STEPS)
_DIGITS = 6  # of a number with its decimals


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
        _console().print(shown(found))


def _watch(address: Address, model: str | None, seconds: float, as_json: bool) -> None:
    """Show the server's state every so many seconds, also that it is away."""
    from rich.live import Live

    from perf import status as state

    before: Reading | None = None
    picture: RenderableType
    with Live(console=_console(), auto_refresh=False) if not as_json else contextlib.nullcontext() as live:
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


def _console() -> Console:
    """Return a console on which nothing is cut off; in a pipe or a file each sentence is one line."""
    console = new_console()
    return new_console(width=max(console.width, _COLUMNS) if console.is_terminal else _WIDE)


def shown(found: Status) -> Group:
    """Return what is printed of a server's state."""
    parts: list[RenderableType] = [_heading(found)]
    parts += [Text(printable(fault), "red") for fault in found.faults or ()]
    for engine in found.engines:
        parts += [*_table(engine, found.seconds), *_refusals(engine)]
    parts += [_gpu(gpu) for gpu in found.gpus]
    return Group(*parts, *(Text(printable(note), "yellow") for note in found.notes))


def _heading(found: Status) -> Text:
    state = "ready" if found.ready else "not ready"
    if found.ready and found.faults is not None:
        state = "ready, but not every engine answers" if found.faults else "ready, every engine answers"
    style = "green" if found.ready and not found.faults else "red"
    return Text.assemble(printable(f"{found.server} {found.version} at {found.address}: "), (state, style))


def _table(engine: EngineStatus, seconds: float | None) -> list[RenderableType]:
    about = ", ".join(f"{key} {value}" for key, value in engine.about.items())
    span = "since the start" if seconds is None else f"over {seconds:.1f} s; dim, done and failed: since the start"
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)  # a box takes the room of a column
    for name in ("step", "img/s", "queue", "input", "infer", "output", "batch", "waits", "done", "failed"):
        table.add_column(name, justify="left" if name == "step" else "right", no_wrap=True)
    for model in engine.models:
        lately = model.lately if model.lately is not None and model.lately.requests else None
        rate = "" if model.lately is None or not seconds else _number(model.lately.images / seconds, 1)
        times = [Text(value, "" if lately else "dim") for value in _times(lately or model.since_start)]
        waiting = "" if model.waiting is None else _number(model.waiting)
        answered = _number(model.since_start.requests, most=9_999_999)
        failed = Text(_number(model.since_start.failures), "red" if model.lately and model.lately.failures else "")
        step = next((role[1:] for role in _STEPS if model.name.endswith(role)), "all")
        table.add_row(Text(printable(step)), rate, *times, waiting, answered, failed)
    title = Text(printable(f"{_named(engine)}: {about}" if about else _named(engine)))
    return [Text(), title, table, Text(f"times in ms, means {span}", "dim")]


def _number(value: float, digits: int = 0, most: int = 99_999) -> str:
    """Return a number, of thousands and more above `most`, so that a row fits into 80 columns."""
    units = iter("kMGT")
    unit = ""
    while round(value) > most:
        value, digits, unit = value / 1000, 0, next(units)
    text = f"{value:.{digits}f}"
    return f"{text if len(text) <= _DIGITS else round(value)}{unit}"


def _named(engine: EngineStatus) -> str:
    version = f" version {engine.version}" if engine.version else ""
    return f"{engine.name}{version}" + (f" (version {engine.loading} is loaded beside it)" if engine.loading else "")


def _times(step: StepStatus) -> list[str]:
    if not step.requests:
        return [""] * 5
    phases = (step.queue_ms, step.compute_input_ms, step.compute_infer_ms, step.compute_output_ms)
    return [*(_number(value, 2) for value in phases), _number(step.batch, 1) if step.batch else ""]


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
