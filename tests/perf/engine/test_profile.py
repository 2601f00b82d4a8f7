from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from perf.engine.profile import CALLS, OTHER, PART, profile, summarise_events  # noqa: E402  # after the check for torch


def test_profile_names_parts_and_kernels_and_writes_a_trace(tmp_path: Path) -> None:
    module = torch.nn.Sequential()
    module.add_module("first", torch.nn.Linear(8, 8))
    module.add_module("second", torch.nn.Softmax(-1))
    found = profile(lambda: module(torch.ones(2, 8)), "cpu", tmp_path / "trace.json.gz", module)
    assert [part.name for part in found.parts] == ["first", "second", OTHER]
    assert [part.calls for part in found.parts] == [1, 1, 1]
    assert sum(part.ms for part in found.parts) == pytest.approx(found.total_ms)
    assert {"aten::addmm", "aten::_softmax"} <= {kernel.name for kernel in found.kernels}
    assert [kernel.ms for kernel in found.kernels] == sorted((kernel.ms for kernel in found.kernels), reverse=True)
    with gzip.open(tmp_path / "trace.json.gz") as file:
        assert any(event.get("name") == f"{PART}first" for event in json.load(file)["traceEvents"])
    assert not module.first._forward_hooks
    assert not module.first._forward_pre_hooks


def event(name: str, device: str, us: float = 0.0, kernels: Any = (), children: Any = ()) -> Any:
    return SimpleNamespace(
        name=name, device_type=SimpleNamespace(name=device), is_user_annotation=name.startswith(PART),
        self_device_time_total=us, cpu_children=list(children),
        kernels=[SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels],
    )  # fmt: skip


def test_a_gpus_kernels_count_once_for_their_part() -> None:
    launch = event("cudaLaunchKernel", "CPU", kernels=[("gemm", 600.0)])
    operator = event("aten::addmm", "CPU", children=[launch])
    # CUPTI repeats our range on the GPU and links it to the range on the CPU, as if it were a kernel.
    part = event(f"{PART}encoder", "CPU", kernels=[(f"{PART}encoder", 900.0)], children=[operator])
    on_gpu = [event("gemm", "CUDA", 600.0), event("copy", "CUDA", 300.0), event(f"{PART}encoder", "CUDA", 900.0)]
    found = summarise_events([launch, operator, part, *on_gpu], "cuda")
    assert found.total_ms == pytest.approx(0.9 / CALLS)
    assert [(part.name, part.ms) for part in found.parts] == [
        ("encoder", pytest.approx(0.6 / CALLS)),
        (OTHER, pytest.approx(0.3 / CALLS)),
    ]
    assert [kernel.name for kernel in found.kernels] == ["gemm", "copy"]
