"""`codetr bench server` and `codetr bench install-perf-analyzer`: sweeps over a running server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codetr.bench_preprocess import parse_counts, parse_size
from codetr.shown import say
from serving.contract import ENSEMBLE
from serving.errors import CodetrError

if TYPE_CHECKING:
    from perf.server.run import Result


def install_perf_analyzer(
    folder: Annotated[Path | None, typer.Option(help="Where to; the user's folder for caches if not given.")] = None,
) -> None:
    """Set up NVIDIA's perf_analyzer from wheels (x86-64 Linux)."""
    from perf.server.perf_analyzer import install

    say(f"perf_analyzer is at {install(folder).binary}")


def bench_server(
    output: Annotated[Path, typer.Option(help="Folder for the report, results.json and CSV files.")] = Path(
        "runs/bench/server"
    ),
    url: Annotated[str | None, typer.Option(help="host:port; Triton's port on this machine if not given.")] = None,
    protocol: Annotated[Literal["grpc", "http"], typer.Option(help="How to talk to the server.")] = "grpc",
    metrics_url: Annotated[
        str | None, typer.Option(help="The server's metrics page; that of the server at --url if not given.")
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the ensemble on the server.")] = ENSEMBLE,
    models: Annotated[
        str,
        typer.Option(help="Comma-separated parts to measure: codetr for the ensemble, codetr_detector ...; or 'all'."),
    ] = "all",
    concurrency: Annotated[str, typer.Option(help="Comma-separated numbers of concurrent requests.")] = "1,2,4,8",
    rates: Annotated[
        str,
        typer.Option(help="Poisson images/s, comma-separated; 'auto': 50, 70, 90 % of the best throughput; or 'none'."),
    ] = "auto",
    p99_limit_ms: Annotated[
        float | None, typer.Option(min=0.1, help="Search the highest rate whose p99 stays within this.")
    ] = None,
    pictures: Annotated[str, typer.Option(help="Comma-separated WIDTHxHEIGHT of the JPEGs sent in turn.")] = (
        "1920x1080,640x480,1080x1920,1280x720"
    ),
    batch: Annotated[int, typer.Option(min=1, help="Images in a request.")] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Passes over all levels; they give the spread.")] = 3,
    window: Annotated[float, typer.Option(min=0.1, help="Seconds of a window; a level has three.")] = 2.0,
    baseline: Annotated[Path | None, typer.Option(help="results.json of an earlier run to compare with.")] = None,
) -> None:
    """Sweep a running server with perf_analyzer: the ensemble and each step, concurrency and Poisson arrivals."""
    from perf.connection import Connection
    from perf.records import DRAWN, RESULTS_NAME, check_output, reporting
    from perf.report import load_record, write_server_report
    from perf.server import run as server
    from perf.server.perf_analyzer import find
    from perf.status import metrics_beside, metrics_page

    page = None if metrics_url is None else metrics_page(metrics_url)
    plan = server.Plan(
        models=parse_models(models),
        concurrencies=tuple(parse_counts("--concurrency", concurrency)),
        rates=parse_rates(rates),
        p99_limit=p99_limit_ms,
        repeats=repeats,
        window=window,
        batch=batch,
        picture_sizes=tuple(parse_size("--pictures", size) for size in pictures.split(",")),
    )
    if ENSEMBLE not in plan.models and (plan.rates or plan.p99_limit is not None):
        raise CodetrError(
            f"--rates and --p99-limit-ms are of {ENSEMBLE} alone, which --models leaves out; add it, or leave them out"
        )
    check_output(output, sources=[baseline], others=DRAWN, kind="server")
    earlier = load_record(baseline, "server") if baseline else None
    installation = find()
    with Connection(url, protocol, ensemble=model) as connection:
        if connection.is_encrypted:
            raise CodetrError(f"--url {url}: perf_analyzer is given no TLS here; name the server's own, plain address")
        configs = connection.model_configs(plan.models)
        server.check_batch(plan.batch, configs)
        page = page or metrics_beside(connection.address)
        bench = server.ServerBench(installation, connection, page, configs, plan.picture_sizes, output)
        with reporting(output, "server", lambda record: write_server_report(record, output, earlier)):
            server.run(bench, plan, output, server.describe(connection, configs), print_result)
    say(f"wrote {output / 'report.html'}, report.md and {RESULTS_NAME}")


def parse_models(text: str) -> tuple[str, ...]:
    """Return the models named, in the contract's order."""
    from perf.server.run import ALL_MODELS

    wanted = set(ALL_MODELS if text == "all" else text.split(","))
    if unknown := wanted - set(ALL_MODELS):
        raise CodetrError(f"--models {', '.join(sorted(unknown))}: expected some of {', '.join(ALL_MODELS)}")
    return tuple(model for model in ALL_MODELS if model in wanted)


def parse_rates(text: str) -> tuple[float, ...] | None:
    """Return the rates, ascending; None for 'auto', () for 'none'."""
    if text in ("auto", "none"):
        return None if text == "auto" else ()
    try:
        rates = tuple(sorted(float(rate) for rate in text.split(",")))
    except ValueError:
        rates = (0.0,)
    if not all(0 < rate < float("inf") for rate in rates):
        raise CodetrError(f"--rates {text!r}: expected numbers above 0 separated by commas, 'auto' or 'none'")
    return rates


def print_result(result: Result) -> None:
    """Print one parsable line a level."""
    level, reading = result.level, result.reading
    line = f"model={level.model} {level.mode}={level.value:g} batch={level.batch} repeat={result.repeat}"
    if reading is None:
        say(f"{line} error={result.error!r}")
        return
    say(
        f"{line} images_per_s={reading.throughput:.2f} p50_ms={reading.p50:.2f} p95_ms={reading.p95:.2f} "
        f"p99_ms={reading.p99:.2f} stable={'yes' if result.stable else 'no'}"
    )
