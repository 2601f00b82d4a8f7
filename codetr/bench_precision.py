"""`codetr bench precision`: error of float16 and bfloat16 against float32."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def precision(
    golden: Annotated[Path, typer.Option(help="Reference data: config, weights and inputs.", exists=True)] = Path(
        "tests/data/golden_swin_tiny.npz"
    ),
    output: Annotated[Path, typer.Option(help="JSON report.")] = Path("perf/results/precision.json"),
) -> None:
    """Measure how far half precision is from float32, at the same chosen proposals."""
    from perf.accuracy.precision import write_precision_report
    from perf.records import check_output

    check_output(output.parent, output.name, (), [golden], key="rows")
    rows = write_precision_report(golden, output)
    table = Table(title="Relative error against float32")
    for column in ("precision", "case", "memory", "logits", "boxes", "max box error", "same proposals"):
        table.add_column(column)
    for row in rows:
        errors = (row.memory, row.logits, row.boxes, row.max_box_error)
        table.add_row(row.precision, row.case, *(f"{error:.1e}" for error in errors), f"{row.same_proposals:.0%}")
    Console().print(table)
