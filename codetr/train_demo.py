"""`codetr train-demo` and `codetr demo-data`: how the demo's weights and its images are made."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from codetr.device import check_device
from codetr.shown import line, new_console, say, shown
from demo import Family
from serving.errors import CodetrError

WORKERS = 15  # that keep a GPU busy


def train_demo(
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and weights; an interrupted run continues.")],
    family: Annotated[Family, typer.Option(help="Family of the detector.")] = "co_dino",
    device: Annotated[str, typer.Option(help="cuda or cpu; a GPU takes a quarter of an hour, a CPU days.")] = "cuda",
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that draw images.", show_default=f"{WORKERS}, or the cores if fewer"),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Stop at the end of a step after so long; the same command continues. A step takes a CPU a minute or "
            "two.",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Train a demo detector on generated shapes, as the weights that come along were trained, and measure its AP."""
    from rich.progress import track

    from codetr.evaluate import summary_line
    from codetr_client.outputs import check_folder
    from demo.train import recipes
    from perf.accuracy.held_out import record_accuracy
    from perf.machine import cores

    check_folder(output)
    check_device(device)
    console = new_console()
    name = recipes.RECIPES[family].variant.name
    command = "codetr train-demo" if family == "co_dino" else f"codetr train-demo --family {family}"
    weights = recipes.train_demo(
        family,
        output,
        command=command,
        device=device,
        workers=min(WORKERS, cores()) if workers is None else workers,
        console=console,
        minutes=math.inf if minutes is None else minutes,
    )
    if weights is None:
        console.print(line(f"time is up; the same command continues from {output}"), soft_wrap=True)
        return
    result = record_accuracy(
        name, weights, output / "held-out", device, progress=lambda indices: track(indices, "drawing")
    )
    console.print(line(summary_line(result)), soft_wrap=True)
    console.print(line(shown(weights, "bold"), f": codetr build {name} --weights {weights} ..."), soft_wrap=True)


def demo_data(
    output: Annotated[Path, typer.Option(help="Folder for images/ and annotations.json (COCO).")],
    images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the data set; the demos were trained on 1 and 3.")] = 2,
) -> None:
    """Draw a data set of shapes as JPEG files with COCO annotations."""
    from rich.progress import track

    from codetr_client.outputs import check_folder
    from demo.shapes.dataset import write_dataset

    check_folder(output)
    try:
        path = write_dataset(output, images, seed, progress=lambda indices: track(indices, "drawing", total=images))
    except FileExistsError as error:
        raise CodetrError(str(error)) from error
    say(f"{images} images and {path}")
