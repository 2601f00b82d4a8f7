"""`codetr inspect`: what an engine is made of, as tables, JSON and one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from codetr.shown import line, new_console, say, shown
from codetr.unused import refuse_unused
from serving.errors import CodetrError

if TYPE_CHECKING:
    from builder.inspect.anatomy import Anatomy

RECORD, PAGE = "inspect.json", "inspect.html"
ROWS = 15


def inspect_engine(
    repository: Annotated[Path, typer.Argument(help="A folder written by `codetr build`.")],
    name: Annotated[str | None, typer.Option(help="Of the ensemble, where the repository has several.")] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Its checkpoint: a torch package on a CPU is compiled again for a profiler, a plan's layers get the "
            "names of modules."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images of the timed inference.")] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Timed inferences.")] = 10,
    tensorrt_python: Annotated[
        Path | None, typer.Option(help="Plans: a Python that has TensorRT; else CODETR_TENSORRT_PYTHON's, or this one.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for inspect.json and inspect.html.")] = Path("runs/inspect"),
) -> None:
    """Show what an engine is made of: layers, types, fusions, tactics, times, memory."""
    from builder.inspect.describe import describe_repository
    from builder.inspect.page import to_page
    from builder.pipeline.manifest import check_described, device_of
    from builder.pipeline.recheck import chosen_names
    from codetr.stages import Stages
    from codetr_client.outputs import write_whole
    from perf.records import check_output, write_record
    from serving.manifest import read_manifest

    check_output(output, RECORD, [PAGE], [weights])
    names = chosen_names(repository, name)
    if len(names) > 1:
        raise CodetrError(f"{repository} has the engines {', '.join(names)}; choose one with --name")
    check_described(repository, names[0])
    manifest = read_manifest(repository, names[0])
    kind, place = manifest["engine"], device_of(manifest)
    refuse_unused(
        f" on an engine of kind {kind} for a {'GPU' if place == 'cuda' else 'CPU'}",
        weights=weights is not None and (kind, place) != ("torch", "cpu") and kind != "tensorrt",
        tensorrt_python=tensorrt_python is not None and kind != "tensorrt",
    )
    found = describe_repository(
        repository,
        names[0],
        weights=weights,
        batch=batch,
        runs=runs,
        python=tensorrt_python,
        stage=Stages(new_console(stderr=True)),
    )
    write_record({**found.to_dict(), "by_module": found.modules()}, output, RECORD)
    write_whole(output / PAGE, to_page(found).encode())
    _print(found)
    say(f"wrote {output / RECORD} and {output / PAGE}, which any browser opens")


def _print(found: Anatomy) -> None:
    console = new_console()
    console.print(shown(found.title, "bold"), soft_wrap=True)
    facts = [f"{len(found.parts)} parts", f"file {_bytes(found.file_bytes)}"]
    facts += [f"{name} {_bytes(size)}" for name, size in found.memory.items()]
    facts += [] if found.total_ms is None else [f"one inference {found.total_ms:.2f} ms"]
    console.print(line(", ".join(facts)), soft_wrap=True, highlight=False)
    _sums(console, "module", found.modules())
    _sums(console, "kind", found.shares("kind"))
    _sums(console, "type", found.shares("type"))
    _slowest(console, found)
    for note in found.notes:
        console.print(line(f"{note}."), soft_wrap=True, highlight=False)


def _sums(console: Console, key: str, rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(key)
    for title in ("parts", "ms", "MFLOP", "weights"):
        table.add_column(title, justify="right")
    for row in rows[:ROWS]:
        ms = "" if row["ms"] is None else f"{row['ms']:.3f}"
        flops = "" if row["flops"] is None else f"{row['flops'] / 1e6:.2f}"
        weights = _bytes(row["weight_bytes"]) if row["weight_bytes"] else ""
        table.add_row(*(shown(cell) for cell in (row[key] or "not told", str(row["parts"]), ms, flops, weights)))
    console.print()
    console.print(table)
    if len(rows) > ROWS:
        console.print(line(f"and {len(rows) - ROWS} more"))


def _slowest(console: Console, found: Anatomy) -> None:
    if not found.has_times:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("slowest", "kind", "module"):
        table.add_column(title)
    table.add_column("ms", justify="right")
    for part in sorted(found.parts, key=lambda part: -(part.ms or 0))[:ROWS]:
        table.add_row(*(shown(cell) for cell in (part.name, part.kind, part.module, f"{part.ms or 0:.3f}")))
    console.print()
    console.print(table)


def _bytes(size: int) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"
