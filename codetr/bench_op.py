"""`codetr bench op`: the deformable-attention operator on this GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr.shown import say

if TYPE_CHECKING:
    from perf.operator.run import OperatorCase


def bench_op(
    output: Annotated[Path, typer.Option(help="Folder for operator.json and operator.md.")] = Path(
        "runs/bench/operator"
    ),
    seed: Annotated[int | None, typer.Option(help="Of the random inputs; fresh ones without it.")] = None,
) -> None:
    """Measure speed and error of the deformable-attention operator beside a plain kernel and grid_sample."""
    from perf.operator.run import run
    from perf.records import check_output

    check_output(output, "operator.json", ["operator.md"])
    run(output, print_case, seed)
    say(f"wrote {output / 'operator.json'} and {output / 'operator.md'}")


def print_case(case: OperatorCase) -> None:
    """Print one parsable line a case."""
    say(
        f"role={case.role} design={case.design} dtype={case.dtype} size={case.height}x{case.width} batch={case.batch} "
        f"us={case.microseconds:.1f} spread={case.spread:.1%} cold_us={case.cold_microseconds:.1f} "
        f"error={case.error:.2e}"
    )
