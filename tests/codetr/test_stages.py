import io

from rich.console import Console

from codetr.stages import GpuPeak, Stages


def test_a_stage_tells_its_name_time_and_memory():
    console = Console(file=io.StringIO(), width=100)
    with Stages(console)("export"):
        pass
    line = console.file.getvalue()  # type: ignore[attr-defined]
    assert line.startswith("✓ export")
    assert " s   peak " in line
    assert "GPU" not in line, "no GPU is in use"


def test_the_highest_use_of_the_gpu_is_kept():
    values = iter([2**30, 3 * 2**30, 2 * 2**30])
    peak = GpuPeak(lambda: next(values))
    for _ in range(3):
        peak._sample()
    assert peak.peak_gib == 3


def test_the_gpu_is_looked_at_once_more_at_the_end(monkeypatch):
    monkeypatch.setattr("codetr.stages.gpu_memory", lambda: 5 * 2**30)
    console = Console(file=io.StringIO(), width=100)
    with Stages(console)("build engine"):
        pass
    assert console.file.getvalue().rstrip().endswith("GPU  5.00 GiB")  # type: ignore[attr-defined]
