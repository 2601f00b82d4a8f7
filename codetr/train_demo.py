"""`codetr train-demo` and `codetr demo-data`: how the demo's weights and its images are made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serving.errors import CodetrError


def train_demo(
    output: Annotated[Path, typer.Option(help="Folder for checkpoints and weights; an interrupted run continues.")],
    device: Annotated[str, typer.Option(help="cuda or cpu; a GPU takes a quarter of an hour, a CPU days.")] = "cuda",
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw images.")] = 15,
) -> None:
    """Train the demo detector on generated shapes, as the weights that come along were trained, and measure its AP."""
    from rich.console import Console
    from rich.progress import track

    from builder.co_dino.presets import DEMO_VARIANT
    from builder.variants import get_variant
    from codetr.evaluate import summary_line
    from demo.train.run import train_demo as train
    from perf.accuracy.held_out import record_accuracy

    console = Console()
    weights = train(get_variant(DEMO_VARIANT), output, "codetr train-demo", device, workers, console)
    result = record_accuracy(
        DEMO_VARIANT, weights, output / "held-out", device, progress=lambda indices: track(indices, "drawing")
    )
    console.print(summary_line(result), highlight=False, soft_wrap=True)
    console.print(f"[bold]{weights}[/]: codetr build {DEMO_VARIANT} --weights {weights} ...", highlight=False)


def demo_data(
    output: Annotated[Path, typer.Option(help="Folder for images/ and annotations.json (COCO).")],
    images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the data set; the demo was trained on 1 and 3.")] = 2,
) -> None:
    """Draw a data set of shapes as JPEG files with COCO annotations."""
    from rich.progress import track

    from demo.shapes.dataset import write_dataset

    try:
        path = write_dataset(output, images, seed, progress=lambda indices: track(indices, "drawing", total=images))
    except FileExistsError as error:
        raise CodetrError(str(error)) from error
    typer.echo(f"{images} images and {path}")
