"""The result of measuring engines as JSON and Markdown, with the published figures for reference."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from builder.family import DetectorConfig
from builder.pipeline.export import InputSpec
from perf.engine.flops import TOTAL
from perf.latency import GEMM_SIDE
from perf.machine import summary
from perf.tables import markdown_table

KIND = "engine"  # of the result file
RESULTS = "engine.json"
PYTORCH = "PyTorch"

# Milliseconds by (width, height) of Co-DINO Swin-L, batch 1, on an RTX 4090. Source: README of
# anenbergb/Co-DETR-TensorRT; the engine is TensorRT 10.7, trtexec's mean GPU compute time with CUDA graphs.
PUBLISHED_NETWORK = ("co_dino", "Swin-L")  # family, and the beginning of the summary
PUBLISHED: dict[tuple[int, int], dict[str, float]] = {
    (608, 608): {"PyTorch float32": 59.0, "PyTorch float16": 24.8, "engine float16": 13.4},
    (1152, 768): {"PyTorch float32": 123.0, "PyTorch float16": 50.8, "engine float16": 30.2},
    (1920, 1280): {"PyTorch float32": 346.0, "PyTorch float16": 147.1, "engine float16": 79.5},
}
PUBLISHED_NOTE = (
    "RTX 4090: **published reference on other hardware**, not measured here: README of anenbergb/Co-DETR-TensorRT. Its "
    "engine is TensorRT 10.7 in float16, mean GPU compute time of `trtexec` with CUDA graphs; PyTorch is eager."
)
COLUMNS = (
    "image", "", "p50 ms", "p90 ms", "p99 ms", "images/s", "speed-up", "over half", "GPU GiB", "GFLOP", "of GEMM rate",
    "agrees", "RTX 4090 ms",
)  # fmt: skip
NAME_LENGTH = 90  # of a kernel in the table


def published_ms(variant: DetectorConfig, spec: InputSpec, implementation: str, precision: str) -> float | None:
    """Return the published latency of this case on an RTX 4090; None if there is none."""
    if (variant.family, variant.summary.split(",")[0]) != PUBLISHED_NETWORK or spec.max_batch_size != 1:
        return None
    kind = PYTORCH if implementation == PYTORCH else "engine"
    return PUBLISHED.get((spec.width, spec.height), {}).get(f"{kind} {precision}")


def write(record: Mapping[str, Any], output: Path) -> None:
    """Write `engine.json` and `engine.md` to the folder `output`; a cut leaves the last whole `engine.json`."""
    partial = output / f"{RESULTS}.partial"
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(output / RESULTS)
    (output / "engine.md").write_text(to_markdown(record), encoding="utf-8")


def to_markdown(record: Mapping[str, Any]) -> str:
    """Return the result file as Markdown."""
    cases, earlier = record["cases"], record.get("earlier_commands")
    parts = [
        "# Engines",
        f"`{record['command']}`, {record['time']}  \n{summary(record['machine'])}"
        + (f", CUDA {record['cuda']}" if record["cuda"] else ""),
        *(["Continued; before: " + ", ".join(f"`{command}`" for command in earlier) + "."] if earlier else []),
        *([] if record["complete"] else ["The run was cut short: cases are missing."]),
        *(f"## {_title(variant)}\n\n{_table(cases, variant)}" for variant in _variants(cases)),
        _method(record),
        *([PUBLISHED_NOTE] if any(case["published_ms"] for case in cases) else []),
        *(_trtexec(case) for case in cases if case["trtexec"]),
        *(_profile(each) for each in record["profiles"]),
    ]
    return "\n\n".join(parts) + "\n"


def _variants(cases: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    return list(dict.fromkeys((case["variant"], case["batch"]) for case in cases))


def _title(variant: tuple[str, int]) -> str:
    return f"{variant[0]}, batch {variant[1]}"


def _table(cases: Sequence[Mapping[str, Any]], variant: tuple[str, int]) -> str:
    own = [case for case in cases if (case["variant"], case["batch"]) == variant]
    return markdown_table(COLUMNS, [_row(case, own) for case in own])


def _row(case: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> list[str]:
    base = baseline_ms(case, cases, half=False)
    half = baseline_ms(case, cases, half=True)
    found = case["agreement"]
    return [
        f"{case['width']}x{case['height']}", f"{case['implementation']} {case['precision']}",
        f"{case['p50_ms']:.2f} ± {case['spread']:.1%}{'' if case['stable'] else ' (unsteady)'}",
        f"{case['p90_ms']:.2f}", f"{case['p99_ms']:.2f}", f"{case['images_per_s']:.1f}",
        f"{base / case['p50_ms']:.2f}x" if base else "", f"{half / case['p50_ms']:.2f}x" if half else "",
        "" if case["memory_gib"] is None else f"{case['memory_gib']:.2f}",
        f"{case['gflop']:.1f}", f"{case['gemm_share']:.0%}",
        f"{found['matched']:.1%}, scores ± {found['max_score_difference']:.1e}" if found else "",
        f"{case['published_ms']:.1f}" if case["published_ms"] else "",
    ]  # fmt: skip


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
