"""`codetr bench op`: the operators, deformable and window attention, on this GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr.shown import say

if TYPE_CHECKING:
    from perf.operator.run import OperatorCase
    from perf.operator.window import WindowCase


def bench_op(
    output: Annotated[Path, typer.Option(help="Folder for operator.json, window.json and the same as .md.")] = Path(
        "runs/bench/operator"
    ),
    seed: Annotated[int | None, typer.Option(help="Of the random inputs; fresh ones without it.")] = None,
) -> None:
    """Measure speed and error of deformable and of window attention, beside a plain kernel and standard operators."""
    from perf.operator.run import run
    from perf.operator.window import run as run_windows
    from perf.records import check_output

    for name in ("operator", "window"):
        check_output(output, f"{name}.json", [f"{name}.md"])
    run(output, print_case, seed)
    run_windows(output, print_window_case, seed)
    say(f"wrote operator and window, each as .json and .md, to {output}")


def print_case(case: OperatorCase) -> None:
    """Print one parsable line a case."""
    say(
        f"role={case.role} design={case.design} dtype={case.dtype} size={case.height}x{case.width} batch={case.batch} "
        f"us={case.microseconds:.1f} spread={case.spread:.1%} cold_us={case.cold_microseconds:.1f} "
        f"error={case.error:.2e}"
    )


def print_window_case(case: WindowCase) -> None:
    """Print one parsable line a case."""
    say(
        f"backbone={case.backbone} design={case.design.replace(' ', '-')} dtype={case.dtype} "
        f"size={case.height}x{case.width} batch={case.batch} stage={case.stage} heads={case.heads} "
        f"us={case.microseconds:.1f} spread={case.spread:.1%} error={case.error:.2e}"
    )
