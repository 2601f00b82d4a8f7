"""`codetr bench faults` and `surroundings`: a service whose steps are killed, which is flooded, or in bad company."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from serving.errors import CodetrError
from serving.repository import check_repository


def bench_faults(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="A folder written by `codetr build`.")],
    output: Annotated[Path, typer.Option(help="Folder for faults.json.")] = Path("runs/bench/faults"),
    rounds: Annotated[int, typer.Option(min=1, help="How often each step is killed, and stopped.")] = 3,
) -> None:
    """Kill, stop and flood the steps of a server of its own, and measure until it is whole again."""
    from perf.faults.run import RECORD_NAME, run
    from perf.records import check_output

    check_output(output, RECORD_NAME, [])
    check_repository(repository)
    run(repository, output, rounds, _print)
    typer.echo(f"wrote {output / RECORD_NAME}")


def bench_surroundings(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="A folder written by `codetr build`.")],
    output: Annotated[Path, typer.Option(help="Folder for surroundings.json.")] = Path("runs/bench/faults"),
    parts: Annotated[str, typer.Option(help="Comma-separated: what to try.")] = "fairness,floods,ends,places,damages",
    seconds: Annotated[float, typer.Option(min=1, help="For each number of clients beside a small image's.")] = 10.0,
) -> None:
    """Try servers beside large images, with a slow engine, on small and full disks, with damage, and at their end."""
    from perf.faults.surroundings import PARTS, RECORD_NAME, run
    from perf.records import check_output

    chosen = [part.strip() for part in parts.split(",") if part.strip()]
    if unknown := [part for part in chosen if part not in PARTS]:
        raise CodetrError(f"parts: {', '.join(unknown)} is not known; expected {', '.join(PARTS)}")
    check_output(output, RECORD_NAME, [])
    check_repository(repository)
    run(repository, output, chosen, seconds, _print)
    typer.echo(f"wrote {output / RECORD_NAME}")


def _print(case: Any) -> None:
    """Print one parsable line a case."""
    from dataclasses import asdict, is_dataclass

    values = asdict(case) if is_dataclass(case) and not isinstance(case, type) else case
    shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in values.items()}
    name = type(case).__name__ if is_dataclass(case) else "Stopped"
    typer.echo(" ".join([name, *(f"{name}={value}" for name, value in shown.items() if name != "messages")]))
