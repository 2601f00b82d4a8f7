"""The result of measuring engines as JSON and Markdown, with the published figures for reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perf.engine.flops import TOTAL
from perf.engine.published import PUBLISHED
from perf.latency import GEMM_SIDE
from perf.machine import summary
from perf.records import write_record
from perf.tables import markdown_table
from serving.contract import ENSEMBLE

KIND = "engine"  # of the result file
RESULTS = "engine.json"
PYTORCH = "PyTorch"
PICTURE = "latency-accuracy.svg"

COLUMNS = (
    "image", "", "p50 ms", "p90 ms", "p99 ms", "images/s", "speed-up", "over half", "GPU GiB", "GFLOP", "of GEMM rate",
    "agrees", "published ms",
)  # fmt: skip
NAME_LENGTH = 90  # of a kernel in the table


def write(record: Mapping[str, Any], output: Path) -> None:
    """Write `engine.json` and `engine.md` to the folder `output`; a cut leaves the last whole `engine.json`."""
    write_record(record, output, RESULTS)
    (output / "engine.md").write_text(to_markdown(record), encoding="utf-8")
    choices = _choices(record["cases"])
    if len(choices) > 1:
        from perf import plots  # brings plotting along

        figure = plots.latency_accuracy(choices, "latency and published accuracy")
        (output / PICTURE).write_text(plots.svg(figure), encoding="utf-8")


def to_markdown(record: Mapping[str, Any]) -> str:
    """Return the result file as Markdown."""
    cases, earlier = record["cases"], record.get("earlier_commands")
    parts = [
        "# Engines",
        f"`{record['command']}`, {record['time']}  \n{summary(record['machine'])}"
        + (f", CUDA {record['cuda']}" if record["cuda"] else ""),
        *(["Continued; before: " + ", ".join(f"`{command}`" for command in earlier) + "."] if earlier else []),
        *([] if record["complete"] else ["The run was cut short: cases are missing."]),
        *(f"## {_title(variant, cases)}\n\n{_table(cases, variant)}" for variant in _variants(cases)),
        _method(record),
        *_published_notes(cases),
        *([f"![latency and accuracy]({PICTURE})"] if len(_choices(cases)) > 1 else []),
        *(_trtexec(case) for case in cases if case["trtexec"]),
        *(_profile(each) for each in record["profiles"]),
    ]
    return "\n\n".join(parts) + "\n"


def _choices(cases: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float]]:
    """Return variant, milliseconds an image and published AP of the fastest way to run each variant whose AP is known.

    The smallest batch that was measured counts, because that is what one request waits for.
    """
    found: dict[str, tuple[str, float, float]] = {}
    known = [case for case in cases if case.get("box_ap") is not None]
    for case in known:
        smallest = min(other["batch"] for other in known if other["variant"] == case["variant"])
        milliseconds = case["p50_ms"] / case["batch"]
        best = found.get(case["variant"])
        if case["batch"] == smallest and (best is None or milliseconds < best[1]):
            found[case["variant"]] = (case["variant"], milliseconds, case["box_ap"])
    return list(found.values())


def _published_notes(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    hardware = {_hardware(case) for case in cases if case["published_ms"]}
    families = {case.get("family") or PUBLISHED[0].family for case in cases if case["published_ms"]}
    return [each.note for each in PUBLISHED if each.hardware in hardware and each.family in families]


def _hardware(case: Mapping[str, Any]) -> str:
    """Return what a published figure was measured on; older files have those of one card alone."""
    return str(case.get("published_on") or PUBLISHED[0].hardware)


def _variants(cases: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((case["variant"], case["batch"]) for case in cases))


def _title(variant: tuple[str, int], cases: Sequence[Mapping[str, Any]]) -> str:
    ap = next((case.get("box_ap") for case in cases if case["variant"] == variant[0]), None)
    return f"{variant[0]}, batch {variant[1]}" + ("" if ap is None else f", published AP {ap:.1f}")


def _table(cases: Sequence[Mapping[str, Any]], variant: tuple[str, int]) -> str:
    own = [case for case in cases if (case["variant"], case["batch"]) == variant]
    return markdown_table(COLUMNS, [_row(case, own) for case in own])


def _row(case: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> list[str]:
    base = baseline_ms(case, cases, half=False)
    half = baseline_ms(case, cases, half=True)
    found = case["agreement"]
    return [
        f"{case['width']}x{case['height']}", label(case),
        f"{case['p50_ms']:.2f} ± {case['spread']:.1%}{'' if case['stable'] else ' (unsteady)'}",
        f"{case['p90_ms']:.2f}", f"{case['p99_ms']:.2f}", f"{case['images_per_s']:.1f}",
        f"{base / case['p50_ms']:.2f}x" if base else "", f"{half / case['p50_ms']:.2f}x" if half else "",
        "" if case["memory_gib"] is None else f"{case['memory_gib']:.2f}",
        f"{case['gflop']:.1f}", f"{case['gemm_share']:.0%}",
        f"{found['matched']:.1%}, scores ± {found['max_score_difference']:.1e}" if found else "",
        f"{case['published_ms']:.1f}, {_hardware(case)}" if case["published_ms"] else "",
    ]  # fmt: skip


def label(case: Mapping[str, Any]) -> str:
    """Return what a case is of, with the engine's name if it has one of its own."""
    name = case.get("name", "")
    return f"{case['implementation']} {case['precision']}" + (f" ({name})" if name not in ("", ENSEMBLE) else "")


def baseline_ms(case: Mapping[str, Any], cases: Sequence[Mapping[str, Any]], half: bool) -> float | None:
    """Return the median of PyTorch in float32, or in half precision, at the size of `case`; None if not measured."""
    for other in cases:
        same = all(other[name] == case[name] for name in ("width", "height"))
        if same and other["implementation"] == PYTORCH and (other["precision"] != "float32") == half:
            return float(other["p50_ms"])
    return None


ON_GPU = (
    "CUDA events around single calls on an idle GPU, after a spin that hides the launch of a CUDA graph. Inputs lie on "
    "the GPU; PyTorch runs eagerly with this project's operator, the engine as a CUDA graph. Images/s: calls queued "
    "without waiting. GPU GiB: what the used memory grew by, loading included."
)
ON_CPU = "Wall time of single calls on the CPU."
AGREES = "Agrees: share of PyTorch float32's 100 best candidates of an image found again, largest score difference."
RANDOM_WEIGHTS = "Random weights: their speed says something, their boxes do not, so accuracy is not compared."


def _method(record: Mapping[str, Any]) -> str:
    cases, device = record["cases"], record["device"]
    rates = {case["precision"]: case["gemm_tflops"] for case in cases}
    calls = [case["calls"] for case in cases]
    products = ", ".join(f"{rate:.3g} TFLOP/s in {precision}" for precision, rate in rates.items())
    return " ".join([
        ON_GPU if device == "cuda" else ON_CPU,
        f"Percentiles of {record['seconds']:g} s, {min(calls, default=0)} to {max(calls, default=0)} calls, after a",
        "warm-up that lasts until the median stands still; ± robust relative standard deviation.",
        f"TF32 is {'on' if record['tf32'] else 'off'}. Speed-up: over PyTorch float32; over half: over PyTorch in half",
        "precision. GFLOP: matrix products, convolutions, deformable attention; their rate at p50 is set against that",
        f"of one product of {GEMM_SIDE[device]}x{GEMM_SIDE[device]} matrices in the same run: {products}.",
        AGREES if record["weights"] else RANDOM_WEIGHTS,
    ])  # fmt: skip


def _trtexec(case: Mapping[str, Any]) -> str:
    said = f"\n\ntrtexec's median: {case['trtexec_ms']:.2f} ms." if case["trtexec_ms"] else ""
    return f"The same plan at {case['width']}x{case['height']}:\n```\n{case['trtexec']}\n```{said}"


def _profile(found: Mapping[str, Any]) -> str:
    title = f"{found['width']}x{found['height']}, {found['implementation']} {found['precision']}"
    text = [f"## Where the time goes: {title}", f"Trace for https://ui.perfetto.dev: `{found['trace']}`."]
    total, flops = found["total_ms"], found["flops"]
    if not found["kernels"]:
        return "\n\n".join([*text, "PyTorch's profiler sees no kernels of this engine."])
    text.append(f"Kernels (on a CPU: operators) that PyTorch's profiler sees: {total:.2f} ms an inference.")
    if found["parts"]:
        rows = [
            [part["name"], f"{part['ms']:.2f}", f"{part['ms'] / total:.0%}", f"{flops.get(part['name'], 0) / 1e9:.1f}"]
            for part in found["parts"]
        ]
        rows.append(["all", f"{total:.2f}", "100%", f"{flops[TOTAL] / 1e9:.1f}"])
        text.append(markdown_table(("part", "ms", "share", "GFLOP"), rows))
    rows = [
        [
            f"`{kernel['name'][:NAME_LENGTH]}`",
            f"{kernel['ms']:.3f}",
            f"{kernel['ms'] / total:.1%}",
            f"{kernel['calls']:g}",
        ]
        for kernel in found["kernels"]
    ]
    return "\n\n".join([*text, markdown_table(("longest kernels", "ms", "share", "calls"), rows)])
