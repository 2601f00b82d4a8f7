"""`codetr bench op`: the operators, deformable and window attention and what follows the former, on this GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr.shown import say

if TYPE_CHECKING:
    from perf.operator.post_attention import PostAttentionCase
    from perf.operator.run import OperatorCase
    from perf.operator.window import WindowCase


def bench_op(
    output: Annotated[
        Path, typer.Option(help="Folder for operator.json, window.json, post_attention.json and the same as .md.")
    ] = Path("runs/bench/operator"),
    seed: Annotated[int | None, typer.Option(help="Of the random inputs; fresh ones without it.")] = None,
) -> None:
    """Measure speed and error of our operators, beside a plain kernel and standard operators.

    What follows an encoder layer's attention is one operator on Hopper only, where it is measured.
    """
    from perf.operator import post_attention
    from perf.operator.run import run
    from perf.operator.window import run as run_windows
    from perf.records import check_output

    for name in ("operator", "window", "post_attention"):
        check_output(output, f"{name}.json", [f"{name}.md"])
    run(output, print_case, seed)
    run_windows(output, print_window_case, seed)
    written = "operator and window"
    if post_attention.measurable():
        post_attention.run(output, print_post_attention_case, seed)
        written = "operator, window and post_attention"
    say(f"wrote {written}, each as .json and .md, to {output}")


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


def print_post_attention_case(case: PostAttentionCase) -> None:
    """Print one parsable line a case."""
    say(
        f"design={case.design.replace(' ', '-')} dtype={case.dtype} e4m3={case.e4m3} followed={case.followed} "
        f"size={case.height}x{case.width} rows={case.rows} us={case.microseconds:.1f} spread={case.spread:.1%} "
        f"error={case.error:.2e}"
    )
