"""`codetr bench cost`: what the server adds to the detector."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr.bench_preprocess import parse_counts, parse_size
from codetr.shown import say
from serving.errors import CodetrError

if TYPE_CHECKING:
    from perf.cost.cases import Case
    from perf.server.run import Result


# What is of servers with a detector of fixed cost, and means nothing to a repository's own.
_OF_CASES = ("cost_ms", "sizes", "batches", "instances", "concurrency", "repeats")


def bench_cost(
    context: typer.Context,
    output: Annotated[Path, typer.Option(help="Folder for the report, results.json and CSV files.")] = Path(
        "runs/bench/cost"
    ),
    cost_ms: Annotated[float, typer.Option(min=0.1, help="What the engine takes for a batch.")] = 30.0,
    sizes: Annotated[str, typer.Option(help="Comma-separated WIDTHxHEIGHT of the engine.")] = (
        "608x608,1152x768,1920x1280"
    ),
    batches: Annotated[str, typer.Option(help="Comma-separated numbers of images in a request, 8 at most.")] = "1,4",
    instances: Annotated[str, typer.Option(help="Comma-separated instance counts of pre-processing.")] = "1,2,4",
    concurrency: Annotated[int, typer.Option(min=2, help="Concurrent requests of the higher load.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Passes over the loads of a case; they give the spread.")] = 2,
    window: Annotated[float, typer.Option(min=0.1, help="Seconds of a window; a load has three.")] = 1.5,
    repository: Annotated[
        Path | None, typer.Option(help="One of `codetr build`: its real engine instead, alone and in a server.")
    ] = None,
    model: Annotated[str, typer.Option(help="With --repository: the engine's name there.")] = "codetr",
) -> None:
    """Measure what the server adds to a detector of fixed cost, or to a repository's own."""
    from codetr.bench_server import print_result as print_level
    from perf.cost.cases import MAX_BATCH_SIZE, CostPlan
    from perf.cost.report import write_cost_report
    from perf.cost.run import measure_case, run
    from perf.records import DRAWN, check_output, reporting
    from perf.server.perf_analyzer import find

    given = [name for name in (*_OF_CASES, "model") if _is_given(context, name)]
    if repository is not None and (vain := [name for name in given if name in _OF_CASES]):
        raise CodetrError(f"{_options(vain)}: a repository's engine is measured by loads of its own; leave it out")
    if repository is None and "model" in given:
        raise CodetrError(f"{_options(['model'])} is of an engine in a --repository; name that too, or leave it out")
    plan = CostPlan(
        cost_ms=cost_ms,
        sizes=tuple(parse_size("--sizes", size) for size in sizes.split(",")),
        batches=tuple(parse_counts("--batches", batches)),
        preprocess=tuple(parse_counts("--instances", instances)),
        concurrency=concurrency,
        repeats=repeats,
        window=window,
    )
    if max(plan.batches) > MAX_BATCH_SIZE:
        raise CodetrError(
            f"--batches {batches}: the servers measured take at most {MAX_BATCH_SIZE} images in a request"
        )
    installation = find()
    if repository is not None:
        from perf.cost.service import measure_service, to_lines

        check_output(output, "service.json", ["service.md"])
        record = measure_service(repository, model, installation, window, output, print_level)
        for line in to_lines(record):
            say(line)
        say(f"wrote {output / 'service.json'} and service.md")
        return
    check_output(output, others=DRAWN, kind="cost")
    with reporting(output, "cost", lambda record: write_cost_report(record, output)):
        run(partial(measure_case, installation, plan, output), plan, output, print_result)
    say(f"wrote {output / 'report.html'}, report.md and results.json")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _options(names: Sequence[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def print_result(case: Case, result: Result) -> None:
    """Print one parsable line a level."""
    from codetr.bench_server import print_result as print_level

    say(f"case={case.name!r} ", nl=False)
    print_level(result)
