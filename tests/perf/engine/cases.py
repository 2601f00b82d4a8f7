"""A small network, what to measure of it, and measured cases, for the tests of `perf.engine.run*`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from builder.pipeline.export import InputSpec
from perf.engine.run import EngineCase
from perf.engine.targets import Target
from perf.latency import Latency
from tests.smallest import SMALLEST

SMALL = dataclasses.replace(SMALLEST, name="small")
SPEC = InputSpec(64, 96)
FAST = Latency(p50_ms=2.0, p90_ms=3.0, p99_ms=4.0, spread=0.01, calls=50, stable=True, calls_per_s=400.0)
CASE = EngineCase(
    variant="co_dino_swin_l_o365", implementation="PyTorch", precision="float32", device="cuda", width=1152, height=768,
    batch=1, p50_ms=100.0, p90_ms=101.0, p99_ms=102.0, spread=0.002, calls=100, stable=True, images_per_s=10.0,
    memory_gib=3.5, sm_mhz=1980, gflop=2500.0, gemm_tflops=50.0, gemm_share=0.5, agreement=None, published_ms=123.0,
)  # fmt: skip
HALF = dataclasses.replace(CASE, precision="float16", p50_ms=40.0, published_ms=50.8)
ENGINE = dataclasses.replace(
    CASE, implementation="torch", precision="float16", p50_ms=20.0, stable=False, published_ms=30.2, build_seconds=99.0,
    agreement={"matched": 0.99, "max_score_difference": 0.002, "mean_box_iou": 0.995},
)  # fmt: skip


def target(**changes: Any) -> Target:
    return dataclasses.replace(Target(SMALL, SPEC, "onnx", "float32", Path("repository"), "cpu"), **changes)
