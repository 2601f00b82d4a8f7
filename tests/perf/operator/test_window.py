import pytest

torch = pytest.importorskip("torch")

from builder.operators.cuda import load_cuda_operator  # noqa: E402  # after the check for torch
from perf.operator import window  # noqa: E402

CASE = {
    "backbone": "Swin-L", "design": "ours", "dtype": "float16", "height": 768, "width": 1152, "batch": 1, "stage": 0,
    "heads": 6, "blocks": 2, "microseconds": 40.0, "spread": 0.01, "error": 2.3e-4, "compulsory_bytes": 86_000_000,
}  # fmt: skip


def record_of(*cases):
    machine = {"cpu": "x", "cores": 1, "gpus": [], "python": "3", "packages": {}}
    return {"machine": machine, "cuda": "13.0", "time": "now", "copy_bytes_per_s": 4.3e12, "cases": list(cases)}


def test_the_time_of_all_blocks_is_that_of_every_stage_as_often_as_it_is_there():
    third = {**CASE, "stage": 2, "blocks": 18, "microseconds": 10.0}
    record = record_of(CASE, third, {**CASE, "batch": 8}, {**CASE, "dtype": "bfloat16"})
    assert window.totals(record) == {
        ("Swin-L ours float16", "768x1152", 1): pytest.approx(0.26),
        ("Swin-L ours float16", "768x1152", 8): pytest.approx(0.08),
        ("Swin-L ours bfloat16", "768x1152", 1): pytest.approx(0.08),
    }


def test_the_tables_have_a_row_for_every_case_and_sum():
    lines = window.to_markdown(record_of(CASE, {**CASE, "stage": 1})).splitlines()
    assert "| Swin-L ours float16, 768x1152, batch 1 | 0.160 |" in lines
    assert "| Swin-L ours float16 | 768x1152 | 1 | 0 | 6 | 2 | 40.0 ± 1.0% | 2.3e-04 | 50% |" in lines


@pytest.mark.gpu
def test_case_on_a_gpu_reports_error_and_bytes():
    load_cuda_operator()
    case = window.measure_case("Swin-T", "ours", "float16", (96, 136), 2, 1)
    assert (case.heads, case.blocks) == (6, 2)
    assert case.error <= 5e-4
    assert case.compulsory_bytes == 2 * 12 * 17 * 6 * 32 * 4 * 2
