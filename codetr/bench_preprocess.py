"""`codetr bench preprocess`: the speed of pre- and post-processing on one core."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from codetr.shown import say
from serving.errors import CodetrError

if TYPE_CHECKING:
    from perf.preprocess.run import GpuCase, PostprocessCase, PreprocessCase


def bench_preprocess(
    output: Annotated[Path, typer.Option(help="Folder for preprocess.json and preprocess.md.")] = Path(
        "runs/bench/preprocess"
    ),
    size: Annotated[str, typer.Option(help="The engine's WIDTHxHEIGHT.")] = "1152x768",
    formats: Annotated[str, typer.Option(help="Comma-separated formats, or 'all'.")] = "all",
    candidates: Annotated[str, typer.Option(help="Comma-separated numbers of candidates.")] = "100,300,900",
    seconds: Annotated[float, typer.Option(min=0, help="Time for each case.")] = 2.0,
    jpeg_decoder: Annotated[
        Literal["cpu", "gpu"], typer.Option(help="gpu: also JPEGs decoded and resized on the first GPU.")
    ] = "cpu",
) -> None:
    """Measure decode + resize + pad beside bare OpenCV, and post-processing, on one core."""
    from perf.pictures import FORMATS, Format
    from perf.preprocess.run import goal_verdict, run
    from perf.records import check_output

    wanted = tuple(formats.split(",")) if formats != "all" else FORMATS
    chosen: list[Format] = [known for known in FORMATS if known in wanted]
    if unknown := set(wanted) - set(FORMATS):
        raise CodetrError(f"--formats {', '.join(sorted(unknown))}: expected some of {', '.join(FORMATS)}")
    check_output(output, "preprocess.json", ["preprocess.md"])
    counts = parse_counts("--candidates", candidates)
    record = run(parse_size("--size", size), chosen, counts, seconds, output, print_case, jpeg_decoder)
    if verdict := goal_verdict(record):
        say(verdict)
    say(f"wrote {output / 'preprocess.json'} and {output / 'preprocess.md'}")


def parse_size(option: str, text: str) -> tuple[int, int]:
    """Return (width, height) of `WIDTHxHEIGHT`, which an image can have that a server takes."""
    from serving.decode import MAX_SIDE, ImageLimits

    sides = [int(side) if side.isdecimal() else 0 for side in text.split("x")]
    if len(sides) != 2 or not all(sides):
        raise CodetrError(f"{option} {text!r}: expected WIDTHxHEIGHT, such as 1152x768")
    most = ImageLimits().max_pixels
    width, height = sides
    if max(width, height) > MAX_SIDE or width * height > most:
        raise CodetrError(f"{option} {text}: expected sides of at most {MAX_SIDE} and {most} pixels in all")
    return width, height


def parse_counts(option: str, text: str) -> list[int]:
    """Return the positive whole numbers of a comma-separated list, ascending."""
    numbers = text.split(",")
    if not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
        raise CodetrError(f"{option} {text!r}: expected whole numbers above 0, separated by commas")
    return sorted({int(number) for number in numbers})


def print_case(case: PreprocessCase | PostprocessCase | GpuCase) -> None:
    """Print one parsable line a case."""
    from dataclasses import asdict

    values = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in asdict(case).items()}
    say(" ".join([type(case).__name__, *(f"{name}={value}" for name, value in values.items())]))
