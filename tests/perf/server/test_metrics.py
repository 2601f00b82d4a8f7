from __future__ import annotations

from typing import Any

import pytest

from perf.server.metrics import GaugeSampler, read_gauges, step_times

# Lines as tritonserver 2.51 writes them; the second GPU is as on a machine with two.
PAGE = """\
# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.2959183673469388
nv_cpu_memory_total_bytes 25276502016
nv_cpu_memory_used_bytes 2147483648
nv_gpu_utilization{gpu_uuid="GPU-1"} 0.5
nv_gpu_utilization{gpu_uuid="GPU-2"} 1
nv_inference_count{model="codetr",version="1"} 5067
"""


def statistics(name: str, count: int, milliseconds: float, executions: int, failures: int = 0) -> dict[str, Any]:
    """Return one model's statistics, as protobuf's JSON has them: numbers as text, zeros left out."""
    phases = ("queue", "compute_input", "compute_infer", "compute_output")
    total = {"count": str(count), "ns": str(int(count * milliseconds * 1e6))}
    stats: dict[str, Any] = dict.fromkeys(phases, total)
    stats["success"] = {"count": str(count)}
    stats["fail"] = {"count": str(failures)} if failures else {}
    return {
        "name": name,
        "inference_count": str(count),
        "execution_count": str(executions),
        "inference_stats": stats,
    }


def test_only_what_happened_in_between_counts() -> None:
    before = {"model_stats": [statistics("codetr_detector", 100, 1.0, 100)]}
    after = {"model_stats": [statistics("codetr_detector", 300, 3.0, 150, failures=2)]}
    step = step_times(before, after)["codetr_detector"]
    assert step.queue == pytest.approx((300 * 3 - 100 * 1) / 200)
    assert step.total == pytest.approx(4 * step.queue)
    assert (step.requests, step.batch, step.failures) == (200, 4.0, 2)


def test_idle_models_are_left_out_and_new_ones_count_from_zero() -> None:
    idle = statistics("codetr", 5, 1.0, 5)
    times = step_times({"model_stats": [idle]}, {"model_stats": [idle, statistics("codetr_detector", 2, 1.0, 1)]})
    assert list(times) == ["codetr_detector"]


def test_no_statistics_at_all() -> None:
    assert step_times({}, {}) == {}


def test_gauges_have_report_units_and_gpus_are_averaged() -> None:
    gauges = read_gauges(PAGE)
    assert gauges["cpu_percent"] == pytest.approx(29.59, abs=0.01)
    assert gauges["memory_gib"] == 2.0
    assert gauges["gpu_percent"] == 75.0
    assert len(gauges) == 3


def test_a_sampler_without_a_page_has_no_means() -> None:
    with GaugeSampler("http://127.0.0.1:9/metrics", interval=0.001) as sampler:
        pass
    assert sampler.means() == {}


def test_means_are_over_the_samples_that_have_the_gauge() -> None:
    sampler = GaugeSampler("unused")
    sampler._samples = [{"cpu_percent": 10.0}, {"cpu_percent": 30.0, "gpu_percent": 50.0}]
    assert sampler.means() == {"cpu_percent": 20.0, "gpu_percent": 50.0}
