"""What a comparison of layers found: as JSON, as a curve of characters, and as a page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from builder.inspect.layers import CARRIED, OWN, TIMES_PYTORCH, Layer, LayerComparison
from codetr_client.text import markdown

KIND = "layers"  # of the JSON file
FIGURES, REPORT = "compare.json", "compare.md"
PICTURES = ("compare.png", "compare.svg")
SHOWN = 10  # layers with the largest own errors
WIDTH, HEIGHT = 72, 14  # characters of the curve
HALF = ("float16", "bfloat16")
FLOOR = 1e-9  # where an error of 0 is drawn
REASONS = {
    "float32": "float32 has 24 bits: another order of sums moves a layer by 1e-7 to 3e-6",
    "float16": "a layer rounds its operands and its result to 11 bits, 3e-4 in all; attention does so more often",
    "int8": "INT8 has 255 steps for the whole range of a tensor; it is meant to be this far from float32",
    "fp8": "E4M3 has three bits; it is meant to be this far from float32",
    "bfloat16": "a layer rounds its operands and its result to 8 bits, 2e-3 in all; attention does so more often",
}


def to_dict(comparison: LayerComparison, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return all figures; `about` is the engine's manifest."""
    first = comparison.first
    return {
        "kind": KIND,
        "engine": {key: about.get(key) for key in ("variant", "engine", "precision", "height", "width", "weights")},
        "run": comparison.what,
        "agrees": first is None,
        "first": None if first is None else {**_figures(first), "suspects": comparison.suspects.get(first.name, [])},
        "tolerances": {
            "own": OWN[comparison.precision],
            "carried": CARRIED[comparison.precision],
            "times_pytorch": TIMES_PYTORCH if comparison.precision in HALF else None,
            "reason": REASONS[comparison.precision],
        },
        "samples": comparison.samples,
        "unmarked_scores": comparison.unmarked,
        "notes": comparison.notes,
        "unseen": comparison.unseen,
        "layers": [_figures(layer) for layer in comparison.layers],
    }


def _figures(layer: Layer) -> dict[str, Any]:
    return {**asdict(layer), "leaves": layer.leaves, "leaves_carried": layer.leaves_carried}


def finite(value: Any) -> Any:
    """Return a JSON value with text in place of numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def verdict(comparison: LayerComparison) -> list[str]:
    """Return what was found, in sentences."""
    first, count = comparison.first, len(comparison.layers)
    if first is None:
        worst = max(comparison.layers, key=lambda layer: layer.own / layer.own_limit)
        return [
            f"All {count} tensors are within their tolerance; nearest to it is {worst.name}, whose own error is "
            f"{worst.own:.1e} of {worst.own_limit:.1e}."
        ]
    if not first.leaves:
        return [
            f"No layer leaves its own tolerance, but what they carry adds up: {first.name} is {first.carried:.1e} from "
            f"PyTorch, of {first.carried_limit:.1e}."
        ]
    times = first.own / first.own_limit
    lines = [
        f"{first.name} ({first.kind}) leaves its tolerance first: its own error is {first.own:.1e}, "
        f"{times:.3g} times the {first.own_limit:.1e} that it may be."
    ]
    if first.not_finite:
        lines.append(f"{first.not_finite} of its elements are NaN or infinite on one side alone.")
    if first.kind == "top-k":
        lines.append(f"{first.moved} rows are others than those that PyTorch chooses of the same scores.")
    if first.parents:
        lines.append(f"It is in {' > '.join(first.parents)}.")
    found = comparison.suspects.get(first.name, [])
    if found:
        lines.append(f"Weights that can be behind it, the nearest first: {', '.join(found[:8])}.")
    others = [layer.name for layer in comparison.layers if layer.leaves and layer is not first]
    if others:
        lines.append(f"{len(others)} more layers do so by themselves: {', '.join(others[:5])}{_more(others, 5)}.")
    return lines


def remarks(comparison: LayerComparison) -> list[str]:
    """Return what has to be known beside the verdict."""
    found = [f"What was run: {comparison.what}.", *(f"{note}." for note in comparison.notes)]
    moved = [layer for layer in comparison.layers if layer.kind == "top-k" and layer.moved and not layer.leaves]
    found += [
        f"{layer.name}: {layer.moved} rows changed places with others whose scores are as high, within the tolerance; "
        "PyTorch went on with the engine's choice."
        for layer in moved
    ]
    apart = [layer for layer in comparison.layers if not layer.comparable]
    if apart:
        found.append(f"{len(apart)} tensors are not comparable, from {apart[0].name} on: {apart[0].note}.")
    if comparison.unseen:
        found.append(
            f"{len(comparison.unseen)} modules have no tensor of their own in the engine, and count for the next that "
            f"has: {', '.join(comparison.unseen[:6])}{_more(comparison.unseen, 6)}."
        )
    return found


def _more(names: Sequence[str], shown: int) -> str:
    return ", ..." if len(names) > shown else ""


def curve(comparison: LayerComparison, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """Return the errors over the depth as lines of characters.

    `o` is the own error, `X` above its tolerance, `-` the tolerance, `.` the carried error. Each column is the worst
    of the layers that fall into it; the axis is logarithmic.
    """
    layers = [layer for layer in comparison.layers if layer.comparable]
    columns = min(width, len(layers))
    marks: dict[tuple[int, int], str] = {}
    values = [value for layer in layers for value in (layer.own, layer.carried, layer.own_limit)]
    numbers = [math.log10(max(value, FLOOR)) for value in values if math.isfinite(value)]
    low, high = math.floor(min(numbers)), max(math.ceil(max(numbers)), math.floor(min(numbers)) + 1)

    def row(value: float) -> int:
        place = (math.log10(max(value, FLOOR)) - low) / (high - low) if math.isfinite(value) else 1.0
        return round(min(max(place, 0.0), 1.0) * (height - 1))

    for column in range(columns):
        chosen = layers[column * len(layers) // columns : (column + 1) * len(layers) // columns]
        limit = min(layer.own_limit for layer in chosen)
        marks[row(limit), column] = "-"
        marks[row(max(layer.carried for layer in chosen)), column] = "."
        own = max(chosen, key=lambda layer: layer.own / layer.own_limit)
        marks[row(own.own), column] = "X" if own.leaves else "o"
    labels = {row(10.0**exponent): f"1e{exponent:+03d}" for exponent in range(low, high + 1)}
    lines = []
    for i in reversed(range(height)):
        drawn = "".join(marks.get((i, column), " ") for column in range(columns))
        lines.append(f"{labels.get(i, ''):>6} |{drawn.rstrip()}")
    lines.append(f"{'':>6} +{'-' * columns}")
    lines.append(f"{'':>8}{_axis(layers, columns)}")
    return lines


def _axis(layers: Sequence[Layer], columns: int) -> str:
    """Return the names of the outermost modules below the columns where they begin."""
    text = [" "] * columns
    free, former = 0, ""
    for index, layer in enumerate(layers):
        part = layer.name.split(" ")[0].split(".")[0]
        column = index * columns // max(len(layers), 1)
        if part != former and column >= free and column + len(part) <= columns:
            text[column : column + len(part)] = part
            free = column + len(part) + 1
        former = part
    return "".join(text).rstrip()


def to_markdown(comparison: LayerComparison, about: Mapping[str, Any]) -> str:
    """Return the report with the curve's picture, which lies beside it."""
    lines = [
        f"# Layers of {about['variant']}, {about['engine']} engine in {about['precision']}",
        "",
        *(f"{markdown(each)}  " for each in verdict(comparison)),
        "",
        f"![error over depth]({PICTURES[1]})",
        "",
        *(f"* {markdown(each)}" for each in remarks(comparison)),
        f"* Tolerance of the own error {OWN[comparison.precision]:g}, of the carried one "
        f"{CARRIED[comparison.precision]:g}: {REASONS[comparison.precision]}."
        + (f" Or {TIMES_PYTORCH:g} times what PyTorch itself loses there." if comparison.precision in HALF else ""),
        f"* {len(comparison.samples)} images: {markdown(', '.join(comparison.samples[:8]))}.",
        "",
        "| layer | class | own | may be | carried | may be | |",
        "|---|---|---|---|---|---|---|",
        *(_row(layer) for layer in comparison.layers),
    ]
    return "\n".join(lines) + "\n"


def _row(layer: Layer) -> str:
    state = "not comparable" if not layer.comparable else "**leaves**" if layer.leaves else ""
    if layer.comparable and not layer.leaves and layer.leaves_carried:
        state = "carries"
    moved = f" {layer.moved} rows moved" if layer.moved else ""
    return (
        f"| {markdown(layer.name)} | {layer.kind} | {layer.own:.1e} | {layer.own_limit:.1e} | {layer.carried:.1e} | "
        f"{layer.carried_limit:.1e} | {state}{moved} |"
    )


def worst(comparison: LayerComparison) -> list[Layer]:
    """Return the layers with the largest own errors, measured by their tolerance, in that order."""
    known = [layer for layer in comparison.layers if layer.comparable]
    return sorted(known, key=lambda layer: -layer.own / layer.own_limit)[:SHOWN]


def paths(folder: Path) -> list[Path]:
    """Return the files of a report in `folder`."""
    return [folder / name for name in (FIGURES, REPORT, *PICTURES)]
