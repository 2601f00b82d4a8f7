"""The reports' plots, as SVG text that an HTML page holds without a network."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from perf.summaries import LevelSummary
from serving import contract

SIZE = (7.2, 4.2)  # inches
PERCENTILE_STYLES = {"p50": ("#1b9e77", "o"), "p95": ("#d95f02", "s"), "p99": ("#7570b3", "^")}
STEP_COLOURS = {
    contract.PREPROCESS: "#1f77b4", contract.DETECTOR: "#d62728", contract.POSTPROCESS: "#2ca02c",
}  # fmt: skip
# matplotlib's own choice; where nothing is said, it warns when a busy machine takes a second for it.
_BEST = "best"
PHASE_SHADES = {"queue": 0.25, "compute_input": 0.5, "compute_infer": 1.0, "compute_output": 0.7}


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element; the same figure always gives the same text."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "codetr", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def throughput_latency(levels: Sequence[LevelSummary], title: str) -> Figure:
    """Return the curve of one model: images a second against p50, p95 and p99, each point named by its load."""
    figure, axes = _axes(title, "images/s", "latency (ms)")
    ordered = sorted(levels, key=lambda level: level.value)
    rates = [level.throughput for level in ordered]
    for name, (colour, marker) in PERCENTILE_STYLES.items():
        latencies = [getattr(level, name) for level in ordered]
        axes.plot(rates, latencies, color=colour, marker=marker, label=name)
    for level in ordered:
        axes.annotate(
            f"{level.value:g}", (level.throughput, level.p99), textcoords="offset points", xytext=(4, 5), fontsize=8
        )
        low, high = level.throughput * (1 - level.spread / 2), level.throughput * (1 + level.spread / 2)
        axes.plot([low, high], [level.p99, level.p99], color=PERCENTILE_STYLES["p99"][0], linewidth=1, alpha=0.6)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(loc=_BEST, title="points: load; bars: spread", fontsize=8, title_fontsize=8)
    return figure


def step_stack(levels: Sequence[LevelSummary], title: str, labels: Sequence[str] = ()) -> Figure:
    """Return bars of where a request's time goes: queue, input, compute and output of every step.

    A bar a level, in their order if they have `labels`, else by load.
    """
    figure, axes = _axes(title, "" if labels else "load", "mean time in the server (ms)")
    ordered = list(levels) if labels else sorted(levels, key=lambda level: level.value)
    places = np.arange(len(ordered))
    bottom = np.zeros(len(ordered))
    for model, colour in STEP_COLOURS.items():
        for phase, shade in PHASE_SHADES.items():
            heights = np.array([level.steps.get(model, {}).get(phase, 0.0) for level in ordered])
            label = f"{model.removeprefix('codetr_')} {phase.replace('compute_', '').replace('infer', 'compute')}"
            axes.bar(places, heights, bottom=bottom, color=colour, alpha=shade, width=0.7, label=label)
            bottom += heights
    axes.set_xticks(places, labels or [f"{level.value:g}" for level in ordered])
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def usage(levels: Sequence[LevelSummary], title: str) -> Figure:
    """Return CPU and, where there is one, GPU use in per cent against the load."""
    figure, axes = _axes(title, "load", "use (%)")
    ordered = sorted(levels, key=lambda level: level.value)
    for gauge, label in (("cpu_percent", "CPU"), ("gpu_percent", "GPU")):
        points = [(level.value, level.gauges[gauge]) for level in ordered if gauge in level.gauges]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.set_ylim(0, 105)
    if axes.lines:
        axes.legend(loc=_BEST, fontsize=8)
    return figure


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    unit: str,
    x_label: str = "time (s)",
    dots: Sequence[str] = (),
) -> Figure:
    """Return lines over a run; `series` maps a label to (x, value) points, those of `dots` are not joined."""
    figure, axes = _axes(title, x_label, unit)
    for label, points in series.items():
        if points:
            style = {"linestyle": "", "marker": "o"} if label in dots else {"linewidth": 1.2}
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set_ylim(bottom=0)
    if axes.lines:
        axes.legend(loc=_BEST, fontsize=8)
    return figure


def latency_accuracy(points: Sequence[tuple[str, float, float]], title: str) -> Figure:
    """Return the picture that people choose a model by; `points` are name, milliseconds an image and AP in percent."""
    figure, axes = _axes(title, "latency (ms, logarithmic)", "box AP (published)")
    for name, milliseconds, ap in points:
        axes.plot([milliseconds], [ap], marker="o", color=PERCENTILE_STYLES["p50"][0])
        axes.annotate(name, (milliseconds, ap), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set_xscale("log")
    return figure


def _axes(title: str, x_label: str, y_label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def layer_errors(layers: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Return the errors of an engine's layers over their depth, as `builder.inspect.report` has them.

    The own error of each layer beside what it may be; the carried one as a line; layers above are named.
    """
    figure, axes = _axes(title, "depth: tensors in the order in which PyTorch makes them", "error / RMS of the tensor")
    known = [(i, layer) for i, layer in enumerate(layers) if not layer["note"]]
    places = [i for i, _ in known]
    floor = 1e-9  # a logarithmic axis has no 0

    def values(key: str) -> list[float]:
        numbers = [layer[key] for _, layer in known]
        top = max([number for number in numbers if np.isfinite(number)] or [1.0])
        return [max(number, floor) if np.isfinite(number) else 10 * top for number in numbers]

    axes.plot(places, values("carried"), color="#7570b3", linewidth=1.0, label="carried")
    axes.plot(places, values("own_limit"), color="#666666", linewidth=0.8, linestyle="--", label="the own one may be")
    own = values("own")
    axes.plot(places, own, color="#1b9e77", marker=".", linestyle="none", label="own")
    leaving = [(i, value, layer["name"]) for (i, layer), value in zip(known, own, strict=True) if layer["leaves"]]
    if leaving:
        axes.plot([i for i, *_ in leaving], [value for _, value, _ in leaving], "X", color="#d62728", label="leaves")
    for i, value, name in leaving[:3]:
        right = i > 0.6 * len(layers)
        axes.annotate(
            name, (i, value), textcoords="offset points", xytext=(-6 if right else 6, 6), fontsize=7,
            ha="right" if right else "left",
        )  # fmt: skip  # where, and how
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    begins = [i for i, layer in enumerate(layers) if i == 0 or _part(layer) != _part(layers[i - 1])]
    for i in begins:
        axes.axvline(i - 0.5, color="#cccccc", linewidth=0.6)
    top = axes.secondary_xaxis("top")
    wide = [i for i, end in zip(begins, [*begins[1:], len(layers)], strict=True) if end - i > len(layers) / 25]
    top.set_xticks(wide, [_part(layers[i]) for i in wide], fontsize=7, rotation=30, ha="left")
    axes.legend(loc=_BEST, fontsize=8)
    return figure


def _part(layer: Mapping[str, Any]) -> str:
    return str(layer["name"]).split(" ")[0].split(".")[0]
