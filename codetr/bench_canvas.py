"""`codetr bench canvas`: how far DETR's answers move on an engine's fixed canvas."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codetr.device import check_device
from codetr.shown import say
from serving.errors import CodetrError

if TYPE_CHECKING:
    from perf.accuracy.canvas import Shift


def bench_canvas(
    variant: Annotated[str, typer.Argument(help="A DETR of `codetr variants`.")] = "detr_r50",
    weights: Annotated[Path | None, typer.Option(help="Its checkpoint.", exists=True)] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Without a checkpoint.")] = False,
    size: Annotated[list[str] | None, typer.Option(help="WIDTHxHEIGHT of a canvas; may be repeated.")] = None,
    images: Annotated[int, typer.Option(help="Drawn images of each orientation.", min=2)] = 4,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cpu",
    output: Annotated[Path, typer.Option(help="JSON report.")] = Path("runs/bench/canvas.json"),
) -> None:
    """Compare DETR on fixed canvases with DETR on the same images alone, at their exact size."""
    from builder.checkpoint import load_detector
    from builder.detr.model import Detr
    from builder.variants import get_variant
    from codetr.bench_preprocess import parse_size
    from perf.accuracy.canvas import run, scaled_detector
    from perf.records import check_output

    if (weights is None) != random_weights:
        raise CodetrError("give either --weights FILE, or --random-weights to measure without a checkpoint")
    if get_variant(variant).family != "detr":
        raise CodetrError(f"{variant} is no DETR; only DETR takes images at sizes of their own")
    canvases = [parse_size("--size", each)[::-1] for each in size or ("1344x1344", "1344x800", "1066x800")]
    check_device(device)
    check_output(output.parent, output.name, (), [weights], kind="canvas")
    detector = scaled_detector(variant) if weights is None else load_detector(variant, weights)
    assert isinstance(detector, Detr)
    name = "random" if weights is None else weights.name
    run(detector.to(device), name, images, canvases, output, print_shift)
    say(f"wrote {output}")


def print_shift(shift: Shift) -> None:
    """Print one parsable line a canvas and orientation."""
    from dataclasses import asdict

    values = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in asdict(shift).items()}
    say(" ".join(f"{name}={value}" for name, value in values.items()))
