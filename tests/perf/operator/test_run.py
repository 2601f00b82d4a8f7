import pytest

torch = pytest.importorskip("torch")

from builder.operators.ms_deform_attn import reference_ms_deform_attn  # noqa: E402  # after the check for torch
from perf.operator import run as operator  # noqa: E402


def test_levels_are_the_published_detectors():
    assert operator.level_sizes(768, 1152) == [(192, 288), (96, 144), (48, 72), (24, 36), (12, 18)]
    assert operator.level_sizes(608, 608)[-1] == (10, 10)  # the neck's stride-2 convolution rounds up


@pytest.mark.parametrize("coordinates", [2, 4], ids=["encoder", "decoder"])
def test_grid_sample_design_computes_the_operator(coordinates):
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 9), (3, 5)]
    value = torch.randn(2, 69, 3, 8, generator=generator)
    reference = torch.rand(2, 7, 2, coordinates, generator=generator)
    offsets = torch.randn(2, 7, 3, 2, 4, 2, generator=generator)
    logits = torch.randn(2, 7, 3, 2, 4, generator=generator)
    arguments = (value, reference, offsets, logits, [side for shape in shapes for side in shape])
    torch.testing.assert_close(operator.grid_sample_attention(*arguments), reference_ms_deform_attn(*arguments))


def test_table_has_a_row_for_every_case():
    case = {
        "role": "encoder", "design": "ours", "dtype": "float16", "height": 608, "width": 608, "batch": 1,
        "microseconds": 80.0, "spread": 0.01, "cold_microseconds": 90.0, "error": 4.2e-4,
        "compulsory_bytes": 344_000_000, "gathered_bytes": 1_200_000_000, "goal_microseconds": 70.0,
    }  # fmt: skip
    record = {
        "machine": {"cpu": "x", "cores": 1, "gpus": [], "python": "3", "packages": {}}, "cuda": "13.0", "time": "now",
        "offset_std": 2.0, "copy_bytes_per_s": 4.3e12, "l1_bytes_per_s": 30e12, "cases": [case, {**case, "batch": 8}],
    }  # fmt: skip
    table = [line for line in operator.to_markdown(record).splitlines() if line.startswith("| encoder")]
    assert len(table) == 2
    assert table[0] == "| encoder ours float16 | 608x608 | 1 | 80.0 ± 1.0% | 90.0 | 70 | 4.2e-04 | 100% | 50% |"


@pytest.mark.gpu
def test_case_on_a_gpu_reports_error_and_bytes():
    case = operator.measure_case("decoder", "ours", "float16", (96, 128), 1)
    assert case.error <= 6e-4
    assert case.gathered_bytes == 900 * 8 * 20 * 4 * 32 * 2


@pytest.mark.gpu
def test_plain_design_computes_the_operator():
    inputs = operator.random_inputs("decoder", torch.float16, (96, 128), 2)
    assert operator.relative_error(operator.call_plain(inputs), inputs) <= 6e-4
