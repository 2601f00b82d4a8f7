"""How fast and how exact the deformable-attention operator is on this GPU, beside the designs it replaces."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from builder.operators.cuda import load_cuda_operator
from builder.operators.ms_deform_attn import ms_deform_attn, reference_ms_deform_attn
from perf.machine import header, summary
from perf.operator.plain import load_plain_kernel
from perf.records import write_record
from perf.statistics import Summary, summarise
from perf.tables import markdown_table
from serving.errors import CodetrError

Role = Literal["encoder", "decoder"]
Design = Literal["ours", "plain", "grid_sample"]
DESIGNS: tuple[Design, ...] = ("ours", "plain", "grid_sample")

# The published detector's operator: 8 heads of 32 channels, strides 4 to 64, 4 points a level, 900 decoder queries.
HEADS, DIM, POINTS, STRIDES, DECODER_QUERIES = 8, 32, 4, (4, 8, 16, 32), 900
OFFSET_STD = 2.0  # pixels
IMAGE_SIZES = ((608, 608), (768, 1152), (1280, 1920))  # height, width
TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# The values of `codetr::ElementType`.
ELEMENT_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
# Microseconds of the FP16 encoder call at batch 1, and of the decoder call: what the project promises on an H200.
GOALS = {(608, 608): 70.0, (768, 1152): 170.0, (1280, 1920): 475.0}
DECODER_GOAL = 15.0
L1_BYTES_PER_CLOCK = 128  # of one multiprocessor
LAUNCHES, REPLAYS = 10, 21  # launches in one CUDA graph, and how often it is timed

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, list[int]]


@dataclass(frozen=True)
class OperatorCase:
    """One call: its time, its error against float64, and what it moved."""

    role: Role
    design: Design
    dtype: str
    height: int
    width: int
    batch: int
    queries: int
    microseconds: float  # median, the inputs as the last launch left them in the caches
    spread: float  # relative
    cold_microseconds: float  # median over inputs too many for the L2 cache
    error: float  # relative error against float64 on the same rounded inputs
    compulsory_bytes: int  # every input read once, the output written once
    gathered_bytes: int  # what the four corners of every sample hold
    goal_microseconds: float | None


def run(output: Path, on_case: Callable[[OperatorCase], None], seed: int | None = None) -> dict[str, Any]:
    """Measure every case, write `operator.json` and `operator.md` to `output`, and return the JSON's content.

    Args:
        output: a folder; made if it is not there.
        on_case: hears of each case as it comes.
        seed: of the random inputs; fresh ones each time without it.

    Raises:
        CodetrError: there is no GPU, or the operator could not be built.
    """
    load_cuda_operator()
    figures = {"offset_std": OFFSET_STD, "copy_bytes_per_s": copy_bandwidth(), "l1_bytes_per_s": l1_bandwidth()}
    return run_cases("operator", measure, on_case, figures, to_markdown, output, seed)


def run_cases(
    kind: str,
    measure: Callable[[], Iterator[Any]],
    on_case: Callable[[Any], None],
    figures: Mapping[str, float | None],
    to_markdown: Callable[[dict[str, Any]], str],
    output: Path,
    seed: int | None,
) -> dict[str, Any]:
    """Measure every case of one operator; write `output`/`kind`.json and .md, and return the JSON's content.

    Args:
        kind: of the result.
        measure: yields the cases, dataclasses.
        on_case: hears of each as it comes.
        figures: of the GPU and the inputs, which all cases have in common.
        to_markdown: returns the record as Markdown.
        output: a folder; made if it is not there.
        seed: of the random inputs; fresh ones each time without it.
    """
    if seed is not None:
        torch.manual_seed(seed)
    cases = []
    for case in measure():
        cases.append(case)
        on_case(case)
    record = {**header(kind), "cuda": torch.version.cuda, **figures, "cases": [asdict(case) for case in cases]}
    write_record(record, output, f"{kind}.json")
    (output / f"{kind}.md").write_text(to_markdown(record), encoding="utf-8")
    return record


def measure() -> Iterator[OperatorCase]:
    """Yield the cases: FP16 beside the other designs, decoder, other types, and batches 2, 4 and 8."""
    for size in IMAGE_SIZES:
        for design in DESIGNS:
            yield measure_case("encoder", design, "float16", size, 1)
    for design in DESIGNS:
        yield measure_case("decoder", design, "float16", (768, 1152), 1)
    for name in ("bfloat16", "float32"):
        for size in IMAGE_SIZES:
            yield measure_case("encoder", "ours", name, size, 1)
    for batch in (2, 4, 8):
        yield measure_case("encoder", "ours", "float16", (768, 1152), batch)


def measure_case(role: Role, design: Design, dtype: str, size: tuple[int, int], batch: int) -> OperatorCase:
    """Measure one design on fresh random inputs for an image of `size` (height, width)."""
    inputs = random_inputs(role, TYPES[dtype], size, batch)
    value, _, offsets, _, _ = inputs
    call = CALLS[design]
    out = call(inputs)
    errors = torch.tensor([relative_error(out[i : i + 1], one_image(inputs, i)) for i in range(batch)])
    compulsory = (
        sum(tensor.nbytes for tensor in inputs[:4])
        + offsets[:, :, 0, 0, 0, 0].numel() * HEADS * DIM * value.element_size()
    )
    fast = design != "grid_sample"
    warm = time_calls([partial(call, inputs)], LAUNCHES if fast else 1)
    sets = min(8, 1 + 4 * torch.cuda.get_device_properties(0).L2_cache_size // compulsory) if fast else 1
    others = [inputs, *(random_inputs(role, TYPES[dtype], size, batch) for _ in range(sets - 1))]
    cold = time_calls([partial(call, given) for given in others], 1) if sets > 1 else warm
    goal = DECODER_GOAL if role == "decoder" else GOALS[size]
    return OperatorCase(
        role, design, dtype, *size, batch, offsets.shape[1], warm.median, warm.spread, cold.median, float(errors.max()),
        compulsory,
        offsets.numel() // 2 * 4 * DIM * value.element_size(),
        goal if design == "ours" and dtype == "float16" and batch == 1 else None,
    )  # fmt: skip


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Return the (h, w) of the five levels of an image: strides 4 to 32, and the neck's extra one."""
    sizes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    return [*sizes, ((sizes[-1][0] - 1) // 2 + 1, (sizes[-1][1] - 1) // 2 + 1)]


def random_inputs(role: Role, dtype: torch.dtype, size: tuple[int, int], batch: int) -> Inputs:
    """Return value, reference points, raw offsets, raw logits (on the GPU) and the flat level sizes.

    Encoder queries are the tokens, with reference points at their centres; decoder queries have random boxes.
    """
    levels = level_sizes(*size)
    tokens = sum(h * w for h, w in levels)
    device = torch.device("cuda")
    if role == "encoder":
        reference = torch.cat([_centres(h, w, device) for h, w in levels])  # [S, 2]
        reference = reference[None, :, None].expand(batch, -1, len(levels), -1).contiguous()
    else:
        reference = torch.rand(batch, DECODER_QUERIES, 1, 4, device=device).expand(-1, -1, len(levels), -1).contiguous()
    shape = (batch, reference.shape[1], HEADS, len(levels), POINTS)
    value = torch.randn(batch, tokens, HEADS, DIM, device=device).to(dtype)
    offsets = (torch.randn(*shape, 2, device=device) * OFFSET_STD).to(dtype)
    logits = torch.randn(shape, device=device).to(dtype)
    return value, reference, offsets, logits, [side for level in levels for side in level]


def _centres(height: int, width: int, device: torch.device) -> Tensor:
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1).flatten(0, 1)


def one_image(inputs: Inputs, index: int) -> Inputs:
    """Return one image's part of a batch."""
    value, reference, offsets, logits, sizes = inputs
    part = slice(index, index + 1)
    return value[part], reference[part], offsets[part], logits[part], sizes


def relative_error(out: Tensor, inputs: Inputs) -> float:
    """Return |out - reference| / |reference|, the reference in float64 from the same inputs; NaN stays NaN."""
    value, reference, offsets, logits, sizes = inputs
    exact = reference_ms_deform_attn(value.double(), reference, offsets.double(), logits.double(), sizes)
    return float((out.double() - exact).norm() / exact.norm())


def call_ours(inputs: Inputs) -> Tensor:
    """Run the operator through the dispatcher."""
    return ms_deform_attn(*inputs)


def call_grid_sample(inputs: Inputs) -> Tensor:
    """Run what PyTorch alone offers: one grid_sample a level, the coordinates in the element type, as exports do."""
    return grid_sample_attention(*inputs)


def grid_sample_attention(
    value: Tensor, reference: Tensor, offsets: Tensor, logits: Tensor, sizes: Sequence[int]
) -> Tensor:
    """Return [B, Q, heads*dim], everything in the type of `value`: the decomposition that exporters fall back to."""
    batch, _, heads, dim = value.shape
    levels = list(zip(sizes[::2], sizes[1::2], strict=True))
    weights = logits.flatten(3).softmax(-1).unflatten(3, logits.shape[3:])
    anchors = reference.to(value.dtype)[:, :, None, :, None, :]
    if reference.shape[-1] == 4:
        locations = anchors[..., :2] + offsets / POINTS * anchors[..., 2:] * 0.5
    else:
        # Level by level: a tensor made of Python numbers could not be captured in a CUDA graph.
        steps = [
            torch.stack([offsets[:, :, :, i, :, 0] / w, offsets[:, :, :, i, :, 1] / h], -1)
            for i, (h, w) in enumerate(levels)
        ]
        locations = anchors + torch.stack(steps, dim=3)
    samples = []
    for level, (tokens, (h, w)) in enumerate(zip(value.split([h * w for h, w in levels], 1), levels, strict=True)):
        feature_map = tokens.permute(0, 2, 3, 1).reshape(batch * heads, dim, h, w)
        grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)  # [B*heads, Q, points, 2]
        samples.append(torch.nn.functional.grid_sample(feature_map, grid, "bilinear", "zeros", align_corners=False))
    weights = weights.transpose(1, 2).flatten(0, 1).flatten(2).unsqueeze(1)  # [B*heads, 1, Q, levels*points]
    out = (torch.cat(samples, -1) * weights).sum(-1)  # [B*heads, dim, Q]
    return out.reshape(batch, heads * dim, -1).transpose(1, 2)


class _PlainCall(ctypes.Structure):
    """`codetr::MsDeformAttn` of plugin_src/ms_deform_attn.h."""

    _fields_ = (
        ("type", ctypes.c_int32), ("value", ctypes.c_void_p), ("reference_points", ctypes.c_void_p),
        ("sampling_offsets", ctypes.c_void_p), ("attention_logits", ctypes.c_void_p), ("valid_shapes", ctypes.c_void_p),
        ("output", ctypes.c_void_p), ("batch", ctypes.c_int32), ("queries", ctypes.c_int32), ("heads", ctypes.c_int32),
        ("dim", ctypes.c_int32), ("levels", ctypes.c_int32), ("points", ctypes.c_int32),
        ("reference_dim", ctypes.c_int32), ("spatial_shapes", ctypes.c_void_p),
    )  # fmt: skip


def call_plain(inputs: Inputs) -> Tensor:
    """Run the design of the usual reference kernels: one thread a channel, nothing shared between threads."""
    value, reference, offsets, logits, sizes = inputs
    batch, queries, heads, levels, points, _ = offsets.shape
    out = value.new_empty(batch, queries, heads * value.shape[3])
    shapes = (ctypes.c_int32 * len(sizes))(*sizes)
    call = _PlainCall(
        ELEMENT_TYPES[value.dtype],
        *(tensor.data_ptr() for tensor in (value, reference, offsets, logits)), None, out.data_ptr(),
        batch, queries, heads, value.shape[3], levels, points, reference.shape[3], ctypes.addressof(shapes),
    )  # fmt: skip
    status = load_plain_kernel()(ctypes.byref(call), ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))
    if status != 0:
        raise CodetrError(f"the plain kernel failed with CUDA error {status}")
    return out


CALLS: dict[str, Callable[[Inputs], Tensor]] = {"ours": call_ours, "plain": call_plain, "grid_sample": call_grid_sample}


def time_calls(calls: Sequence[Callable[[], object]], launches: int) -> Summary:
    """Return microseconds a call, by events around replays of a CUDA graph of all `calls`, `launches` times over."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            for call in calls:
                call()
    for _ in range(3):
        graph.replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPLAYS)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return summarise([start.elapsed_time(end) * 1e3 / (launches * len(calls)) for start, end in events])


def copy_bandwidth() -> float:
    """Return bytes a second of a large copy on the device, counting what is read and what is written.

    The copy is a kernel that multiplies by one; a plain copy, captured into a graph, was measured at two thirds of it.
    """
    source = torch.ones(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (time_calls([partial(torch.mul, source, 1.0, out=target)], 1).median * 1e-6)


def l1_bandwidth() -> float | None:
    """Return bytes a second that the L1 data paths can deliver at the highest clock; None if the clock is unknown."""
    from perf.machine import describe

    clock = re.search(r"(\d+) MHz", " ".join(describe()["gpus"]))
    properties = torch.cuda.get_device_properties(0)
    return int(clock[1]) * 1e6 * properties.multi_processor_count * L1_BYTES_PER_CLOCK if clock else None


def to_markdown(record: dict[str, Any]) -> str:
    """Return the result file as Markdown."""
    rows = []
    for case in record["cases"]:
        seconds = case["microseconds"] * 1e-6
        l1 = record["l1_bytes_per_s"]
        rows.append([
            f"{case['role']} {case['design']} {case['dtype']}", f"{case['height']}x{case['width']}", str(case["batch"]),
            f"{case['microseconds']:.1f} ± {case['spread']:.1%}", f"{case['cold_microseconds']:.1f}",
            f"{case['goal_microseconds']:.0f}" if case["goal_microseconds"] else "", f"{case['error']:.1e}",
            f"{case['compulsory_bytes'] / seconds / record['copy_bytes_per_s']:.0%}",
            f"{case['gathered_bytes'] / seconds / l1:.0%}" if l1 else "",
        ])  # fmt: skip
    columns = ("call", "image", "batch", "µs", "µs, cold L2", "goal", "error", "of copy bandwidth", "of L1 bandwidth")
    l1_text = f"{record['l1_bytes_per_s'] / 1e12:.1f}" if record["l1_bytes_per_s"] else "?"
    return "\n".join([
        "# Deformable attention", "", f"{summary(record['machine'])}, CUDA {record['cuda']}; {record['time']}.", "",
        f"Offsets N(0, {record['offset_std']:g} px), 8 heads x 32 channels, 5 levels x 4 points. Medians of CUDA graph "
        "replays. Error: relative, against float64 on the same rounded inputs, of a batch its worst image's. A "
        "decoder call's data stay in the L2 from one replay to the next. Copy bandwidth (measured, read + "
        f"written) {record['copy_bytes_per_s'] / 1e12:.2f} TB/s against compulsory bytes; L1 bandwidth (128 bytes a "
        f"clock and multiprocessor at the highest clock) {l1_text} TB/s against gathered bytes.",
        "", markdown_table(columns, rows), "",
    ])  # fmt: skip
