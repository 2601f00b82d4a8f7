"""`codetr bench faults`: what a service does whose steps are killed and stopped, and which is flooded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def bench_faults(
    repository: Annotated[Path, typer.Option("--repository", "-r", help="A folder written by `codetr build`.")],
    output: Annotated[Path, typer.Option(help="Folder for faults.json.")] = Path("runs/bench/faults"),
    rounds: Annotated[int, typer.Option(min=1, help="How often each step is killed, and stopped.")] = 3,
) -> None:
    """Kill, stop and flood the steps of a server of its own, and measure until it is whole again."""
    from perf.faults.run import RECORD_NAME, run
    from perf.records import check_output

    check_output(output, RECORD_NAME, [])
    run(repository, output, rounds, _print)
    typer.echo(f"wrote {output / RECORD_NAME}")


def _print(case: Any) -> None:
    """Print one parsable line a case."""
    from dataclasses import asdict, is_dataclass

    values = asdict(case) if is_dataclass(case) and not isinstance(case, type) else case
    shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in values.items()}
    name = type(case).__name__ if is_dataclass(case) else "Stopped"
    typer.echo(" ".join([name, *(f"{name}={value}" for name, value in shown.items() if name != "messages")]))
