"""`codetr variants`: the published models as a table."""

from __future__ import annotations

import rich.box
from rich.console import Console
from rich.table import Table


def variants() -> None:
    """List the variants that can be built, of all families, with their checkpoints."""
    from builder.families import presets

    table = Table(box=rich.box.SIMPLE)
    for column in ("variant", "family", "network", "box AP", "height x width"):
        table.add_column(column, no_wrap=True)
    table.add_column("checkpoint", no_wrap=True)
    for variant in presets().values():
        table.add_row(
            variant.name,
            variant.family,
            variant.summary,
            "-" if variant.box_ap is None else f"{variant.box_ap:.1f}",
            "{} x {}".format(*variant.input_size),
            variant.checkpoint or "-",
        )
    # Wide enough for every name: a narrow terminal breaks the lines, and nothing is cut off.
    Console(width=max(Console().width, 150)).print(table)
