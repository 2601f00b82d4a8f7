"""`codetr compare`: an engine against PyTorch, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from codetr.shown import DONE, line, new_console, say, shown
from codetr.unused import refuse_unused
from serving.errors import CodetrError

if TYPE_CHECKING:
    from builder.inspect.layers import LayerComparison


def compare(
    repository: Annotated[Path, typer.Argument(help="A folder written by `codetr build`.")],
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint of the PyTorch side; none for an engine of random weights.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the ensemble, where the repository has several.")] = None,
    built_from: Annotated[
        Path | None,
        typer.Option(help="Checkpoint that a plan is built from again, if it is not --weights; a package has its own."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="A picture or a folder of them; generated shapes else.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Images to compare on.")] = 2,
    modules: Annotated[
        list[str] | None, typer.Option(help="Pattern of modules to compare, repeatable, such as decoder.*; all else.")
    ] = None,
    as_built: Annotated[
        bool, typer.Option("--as-built", help="Plans: by the outputs it was built to keep; builds no other.")
    ] = False,
    tensorrt_python: Annotated[
        Path | None, typer.Option(help="Plans: a Python that has TensorRT; else CODETR_TENSORRT_PYTHON's, or this one.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for compare.json, compare.md and the curve.")] = Path(
        "runs/compare"
    ),
) -> None:
    """Find the layer at which an engine leaves PyTorch, and by how much."""
    from builder.inspect import report
    from builder.inspect.compare import EVERYTHING, compare_repository
    from builder.pipeline.manifest import check_described
    from builder.pipeline.recheck import chosen_names
    from codetr.stages import Stages
    from codetr_client.outputs import write_whole
    from perf import plots
    from perf.records import check_output, write_record
    from serving.manifest import read_manifest

    check_output(output, report.FIGURES, [report.REPORT, *report.PICTURES], [weights, built_from])
    names = chosen_names(repository, name)
    if len(names) > 1:
        raise CodetrError(f"{repository} has the engines {', '.join(names)}; choose one with --name")
    check_described(repository, names[0])
    about = read_manifest(repository, names[0])
    kind = about["engine"]
    refuse_unused(
        f" on an engine of kind {kind}",
        built_from=built_from is not None and kind == "onnx",
        tensorrt_python=tensorrt_python is not None and kind != "tensorrt",
    )
    if as_built:
        refuse_unused(" with --as-built, which builds nothing", built_from=built_from)
    found = compare_repository(
        repository,
        names[0],
        weights,
        built_from=built_from,
        images=images,
        count=samples,
        modules=tuple(modules or EVERYTHING),
        as_built=as_built,
        python=tensorrt_python,
        stage=Stages(new_console(stderr=True)),
    )
    record = report.to_dict(found, about)
    write_record(report.finite(record), output, report.FIGURES)
    figure = plots.layer_errors(record["layers"], f"{about['variant']}, {about['engine']} engine, {found.precision}")
    figure.savefig(output / report.PICTURES[0], dpi=150)
    write_whole(output / report.PICTURES[1], plots.svg(figure).encode())
    write_whole(output / report.REPORT, report.to_markdown(found, about).encode())
    _print(found)
    say(f"wrote {', '.join(str(path) for path in report.paths(output))}")
    if found.first is not None:
        raise CodetrError(f"the engine leaves PyTorch at {found.first.name}; {output / report.REPORT} has every layer")


def _print(found: LayerComparison) -> None:
    from builder.inspect import report

    console = new_console()
    for text in report.curve(found):
        console.print(shown(text), soft_wrap=True, highlight=False)
    console.print(
        shown(
            "        o own error of a layer, X above its tolerance, - the tolerance, . carried from the layers before"
        ),
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("layer", "class", "own", "may be", "carried"):
        table.add_column(title)
    for layer in report.worst(found):
        style = "red" if layer.leaves else ""
        cells = (layer.name, layer.kind, f"{layer.own:.1e}", f"{layer.own_limit:.1e}", f"{layer.carried:.1e}")
        table.add_row(*(shown(cell, style) for cell in cells))
    console.print(table)
    for text in report.remarks(found):
        console.print(line(text), soft_wrap=True, highlight=False)
    mark = DONE if found.first is None else Text("✗", "red")
    console.print(line(mark, " ", " ".join(report.verdict(found))), soft_wrap=True, highlight=False)
