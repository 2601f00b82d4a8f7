"""`codetr capacity`: how many servers a load needs, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codetr.shown import say
from serving.errors import CodetrError

if TYPE_CHECKING:
    from perf.capacity.simulation import Prediction


def capacity(
    results: Annotated[Path, typer.Argument(help="results.json of `codetr bench server` or `bench cluster`.")],
    rate: Annotated[str, typer.Option(help="Comma-separated images a second, each in a request of its own.")],
    p99_ms: Annotated[float, typer.Option("--p99-ms", min=1, help="Highest p99 latency, in milliseconds.")],
    price: Annotated[float | None, typer.Option(min=0, help="What one server costs an hour, its GPU included.")] = None,
    balancer: Annotated[
        Literal["least-request", "round-robin"], typer.Option(help="Envoy's rule, or that of `dns:///` clients.")
    ] = "least-request",
    max_use: Annotated[float, typer.Option(min=0.05, max=1.0, help="Highest share of what servers can answer.")] = 0.9,
    output: Annotated[Path | None, typer.Option(help="Folder for the report and results.json.")] = None,
) -> None:
    """Say how many servers keep a p99 at a rate, by a simulation of what was measured of one."""
    from perf.capacity.plan import Plan, plan_capacity, read_service, write_capacity_report
    from perf.records import check_output, reporting, write_record

    plan = Plan(_rates(rate), p99_ms, price, balancer, max_use)
    if output is not None:
        check_output(output, sources=[results], kind="capacity")
    service, source = read_service(results)
    record = plan_capacity(service, source, plan, lambda found: print_result(found, plan.price))
    if output is not None:
        with reporting(output, "capacity", lambda written: write_capacity_report(written, output)):
            write_record(record, output)
        say(f"wrote {output / 'report.html'}, report.md and results.json")


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(each) for each in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not all(0 < each < float("inf") for each in rates):
        raise CodetrError(f"--rate {text}: expected numbers above 0, such as 100,1000")
    return rates


def print_result(found: Prediction, price: float | None) -> None:
    """Print one parsable line."""
    from perf.capacity.plan import cost

    costs = "".join(f" {name}={value:.4g}" for name, value in cost(found, price).items())
    say(
        f"rate={found.rate:g} replicas={found.replicas} use={found.use:.2f} p50_ms={found.p50:.1f} "
        f"p99_ms={found.p99:.1f} ratio={found.ratio:.2f}{costs}"
    )
