import pytest

torch = pytest.importorskip("torch")

from builder.engines.torch_post_attention import random_layer, random_tokens  # noqa: E402  # after the check for torch
from builder.operators.cuda import load_cuda_operator  # noqa: E402
from builder.operators.post_attention_layer import Kind  # noqa: E402
from perf.operator import post_attention  # noqa: E402
from tests.markers import skip_but_on_hopper  # noqa: E402

CASE = {
    "design": "ours", "dtype": "float16", "e4m3": False, "followed": True, "height": 768, "width": 1152, "rows": 73656,
    "microseconds": 400.0, "spread": 0.01, "error": 4.1e-4, "compulsory_bytes": 286_000_000,
    "operations": 100_000_000_000,
}  # fmt: skip
CALLS = {
    "ours": post_attention.ours,
    "separate": lambda layer: lambda *inputs: post_attention.separate(layer, *inputs),
}


def record_of(*cases):
    machine = {"cpu": "x", "cores": 1, "gpus": [], "python": "3", "packages": {}}
    return {
        "machine": machine, "cuda": "13.0", "time": "now", "copy_bytes_per_s": 4.3e12, "checked_rows": 4096,
        "cases": list(cases),
    }  # fmt: skip


def test_the_table_has_a_row_for_every_case():
    other = {**CASE, "design": "separate operators", "e4m3": True, "followed": False, "microseconds": 800.0}
    lines = post_attention.to_markdown(record_of(CASE, other)).splitlines()
    assert "| ours float16 | yes | 768x1152 | 73656 | 400.0 ± 1.0% | 4.1e-04 | 250 | 17% |" in lines
    assert "| separate operators E4M3 |  | 768x1152 | 73656 | 800.0 ± 1.0% | 4.1e-04 | 125 | 8% |" in lines


@pytest.mark.parametrize("design", CALLS)
@pytest.mark.parametrize("e4m3", [False, True], ids=["half", "E4M3"])
@pytest.mark.parametrize("columns", [(64, 32), (0, 0)], ids=["followed", "last"])
def test_both_designs_are_compared_with_the_same_layer(design, e4m3, columns):
    generator = torch.Generator().manual_seed(0)
    layer = random_layer(Kind(torch.float16, 256, 256, e4m3, *columns), generator)
    inputs = [random_tokens(90, torch.float16, generator) for _ in range(3)]
    with torch.no_grad():
        out = CALLS[design](layer)(*inputs)
        errors = post_attention.relative_errors(layer, inputs, out, torch.tensor([3, 89, 0]))
    assert len(errors) == (4 if columns[0] else 1)
    assert max(errors) < (0.05 if e4m3 else 1e-3)
    assert min(errors) > (5e-3 if e4m3 else 1e-4)
    wrong = (out[0].roll(1, 0), *out[1:])
    assert post_attention.relative_errors(layer, inputs, wrong, torch.arange(90))[0] > 1


def test_operations_are_those_of_the_products():
    layer = Kind(torch.float16, 256, 2048, False, 320, 160)
    assert post_attention.operations(layer, 10) == 2 * 10 * (256 * 256 + 2 * 256 * 2048 + 256 * 256 + 256 * 480)
    last = layer._replace(offsets=0, logits=0)
    assert post_attention.operations(last, 10) == 2 * 10 * (256 * 256 + 2 * 256 * 2048)


@pytest.mark.gpu
@pytest.mark.parametrize("design", post_attention.DESIGNS)
@pytest.mark.parametrize("e4m3", [False, True], ids=["half", "E4M3"])
def test_case_on_a_gpu_reports_error_and_bytes(design, e4m3):
    load_cuda_operator()
    skip_but_on_hopper()
    case = post_attention.measure_case(design, "float16", e4m3, True, (96, 136))
    assert case.rows == 24 * 34 + 12 * 17 + 6 * 9 + 3 * 5 + 2 * 3
    assert case.error <= (0.05 if e4m3 else 1e-3)
    assert case.compulsory_bytes > case.rows * 2 * (5 * 256 + 480)
    assert case.microseconds > 0
