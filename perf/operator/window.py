"""How fast and how exact window attention is on this GPU: every kind of block of Swin-L and Swin-T."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from builder.operators.cuda import load_cuda_operator
from builder.operators.window_attention import KERNEL_HEAD_DIM, reference_window_attention, window_attention
from perf.machine import summary
from perf.operator.run import IMAGE_SIZES, LAUNCHES, TYPES, copy_bandwidth, run_cases, time_calls
from perf.tables import markdown_table

Design = Literal["ours", "standard operators"]
PATCH = 4  # pixels
# Window, heads of the first stage (they double), and blocks of each stage.
BACKBONES = {"Swin-L": (12, 6, (2, 2, 18, 2)), "Swin-T": (7, 3, (2, 2, 6, 2))}


@dataclass(frozen=True)
class WindowCase:
    """The blocks of one stage, half of them shifted: their time, and their error against float64."""

    backbone: str
    design: Design
    dtype: str
    height: int  # of the image
    width: int
    batch: int
    stage: int
    heads: int
    blocks: int
    microseconds: float  # of a block: the mean of the medians of a regular and of a shifted one
    spread: float  # relative, of the regular one
    error: float  # relative error against float64 on the same rounded inputs, the worse of the two
    compulsory_bytes: int  # of a block: query, key and value read once, the output written once


def run(output: Path, on_case: Callable[[WindowCase], None], seed: int | None = None) -> dict[str, Any]:
    """Measure every case, write `window.json` and `window.md` to `output`, and return the JSON's content.

    The arguments and errors are those of `perf.operator.run.run`.
    """
    load_cuda_operator()
    return run_cases("window", measure, on_case, {"copy_bytes_per_s": copy_bandwidth()}, to_markdown, output, seed)


def measure() -> Iterator[WindowCase]:
    """Yield the cases: Swin-L in FP16 by image size, beside standard operators, in BF16, in a batch; Swin-T."""
    usual = IMAGE_SIZES[1]
    kinds: list[tuple[str, Design, str, tuple[int, int], int]] = [
        *(("Swin-L", "ours", "float16", size, 1) for size in IMAGE_SIZES),
        ("Swin-L", "standard operators", "float16", usual, 1),
        ("Swin-L", "ours", "bfloat16", usual, 1),
        ("Swin-L", "ours", "float16", IMAGE_SIZES[0], 8),
        ("Swin-T", "ours", "float16", usual, 1),
    ]
    for backbone, design, dtype, size, batch in kinds:
        for stage in range(4):
            yield measure_case(backbone, design, dtype, size, batch, stage)


def measure_case(
    backbone: str, design: Design, dtype: str, size: tuple[int, int], batch: int, stage: int
) -> WindowCase:
    """Measure one stage of a backbone on fresh random inputs for images of `size` (height, width)."""
    window, first_heads, blocks = BACKBONES[backbone]
    heads = first_heads * 2**stage
    inputs = random_inputs(TYPES[dtype], size, batch, stage, heads, window)
    call = window_attention if design == "ours" else reference_window_attention
    shifts = (0, window // 2)
    error = max(relative_error(call(*inputs, window, shift), inputs, window, shift) for shift in shifts)
    launches = LAUNCHES if design == "ours" else 1
    regular, shifted = (time_calls([partial(call, *inputs, window, shift)], launches) for shift in shifts)
    return WindowCase(
        backbone, design, dtype, *size, batch, stage, heads, blocks[stage], (regular.median + shifted.median) / 2,
        regular.spread, error, inputs[0].nbytes // 3 * 4,
    )  # fmt: skip


def random_inputs(
    dtype: torch.dtype, size: tuple[int, int], batch: int, stage: int, heads: int, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a projection's output, its bias and the table of position biases, on the GPU."""
    height, width = (-(-side // (PATCH * 2**stage)) for side in size)
    channels = 3 * heads * KERNEL_HEAD_DIM
    qkv = torch.randn(batch, height, width, channels, device="cuda").to(dtype)
    table = torch.randn((2 * window - 1) ** 2, heads, device="cuda").to(dtype)
    return qkv, torch.randn(channels, device="cuda").to(dtype), table


def relative_error(out: Tensor, inputs: tuple[Tensor, Tensor, Tensor], window: int, shift: int) -> float:
    """Return |out - reference| / |reference| of the worst image, the reference in float64; NaN stays NaN."""
    qkv, qkv_bias, table = (tensor.double() for tensor in inputs)
    errors = []
    for image in range(len(qkv)):
        exact = reference_window_attention(qkv[image : image + 1], qkv_bias, table, window, shift)[0]
        errors.append((out[image].double() - exact).norm() / exact.norm())
    return float(torch.stack(errors).max())


def to_markdown(record: dict[str, Any]) -> str:
    """Return the result file as Markdown."""
    rows = []
    for case in record["cases"]:
        bandwidth = case["compulsory_bytes"] / (case["microseconds"] * 1e-6) / record["copy_bytes_per_s"]
        rows.append([
            f"{case['backbone']} {case['design']} {case['dtype']}", f"{case['height']}x{case['width']}",
            str(case["batch"]), str(case["stage"]), str(case["heads"]), str(case["blocks"]),
            f"{case['microseconds']:.1f} ± {case['spread']:.1%}", f"{case['error']:.1e}", f"{bandwidth:.0%}",
        ])  # fmt: skip
    columns = ("call", "image", "batch", "stage", "heads", "blocks", "µs a block", "error", "of copy bandwidth")
    sums = [[f"{name}, {size}, batch {batch}", f"{ms:.3f}"] for (name, size, batch), ms in totals(record).items()]
    return "\n".join([
        "# Window attention", "", f"{summary(record['machine'])}, CUDA {record['cuda']}; {record['time']}.", "",
        "Medians of CUDA graph replays, a block being the mean of a regular and a shifted one. Error: relative, "
        "against float64 on the same rounded inputs, of a batch its worst image's.",
        "", markdown_table(("all blocks", "ms"), sums), "", markdown_table(columns, rows), "",
    ])  # fmt: skip


def totals(record: dict[str, Any]) -> dict[tuple[str, str, int], float]:
    """Return the milliseconds of all blocks by call, image and batch."""
    sums: dict[tuple[str, str, int], float] = {}
    for case in record["cases"]:
        call = f"{case['backbone']} {case['design']} {case['dtype']}"
        key = (call, f"{case['height']}x{case['width']}", case["batch"])
        sums[key] = sums.get(key, 0.0) + case["blocks"] * case["microseconds"] * 1e-3
    return sums
