"""`codetr bench gpus`: what further GPUs of one machine bring."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codetr.bench_preprocess import parse_counts
from codetr.shown import say
from serving.contract import ENSEMBLE
from serving.errors import CodetrError

if TYPE_CHECKING:
    from perf.gpus.run import GpuResult


def bench_gpus(
    repository: Annotated[Path, typer.Option(help="With the engine.")],
    name: Annotated[str, typer.Option(help="Of the engine.")] = ENSEMBLE,
    gpus: Annotated[str, typer.Option(help="Numbers of the GPUs; the first is also measured alone.")] = "0,1",
    way: Annotated[
        Literal["server", "processes", "both"], typer.Option(help="Through a server, or in processes without one.")
    ] = "both",
    concurrency: Annotated[str, typer.Option(help="Comma-separated requests at a time, of the server.")] = "16,32,64",
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each run, after its warm-up.")] = 10.0,
    output: Annotated[Path, typer.Option(help="Folder for results.json.")] = Path("runs/bench/gpus"),
) -> None:
    """Measure images a second on one GPU and on several, and compare what they answer."""
    from perf.gpus.run import SCORE_TOLERANCE, run
    from perf.records import check_output

    if not all(number.isdecimal() for number in gpus.split(",")) or len(set(gpus.split(","))) < 2:
        raise CodetrError(f"--gpus {gpus!r}: expected at least two different numbers, such as 0,1")
    check_output(output, reports=(), kind="gpus")
    record = run(
        repository,
        name,
        [int(number) for number in gpus.split(",")],
        ("processes", "server") if way == "both" else (way,),
        parse_counts("--concurrency", concurrency),
        seconds,
        output,
        print_result,
    )
    for case, ratio in record["ratios"].items():
        say(f"{case}: {ratio:.2f} times as many images a second on all GPUs")
    worst = max(each["largest_difference"] for each in record["results"])
    if worst > SCORE_TOLERANCE:
        raise CodetrError(f"the GPUs do not agree: a score differs by {worst:.3f}, more than {SCORE_TOLERANCE}")


def print_result(result: GpuResult) -> None:
    """Print one parsable line a run."""
    say(
        f"way={result.way} gpus={','.join(map(str, result.gpus))} concurrency={result.concurrency} "
        f"images_per_s={result.images_per_s:.1f} largest_difference={result.largest_difference:.2g} "
        f"failures={result.failures} identical={result.identical}"
    )
