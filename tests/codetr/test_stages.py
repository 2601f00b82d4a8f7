import io
import signal
from contextlib import suppress

import pytest
from rich.console import Console

from codetr.stages import GpuPeak, Stages


def test_a_stage_tells_its_name_time_and_memory():
    console = Console(file=io.StringIO(), width=100)
    with Stages(console)("export"):
        pass
    line = console.file.getvalue()
    assert line.startswith("✓ export")
    assert " s   peak " in line
    assert "GPU" not in line, "no GPU is in use"


@pytest.mark.parametrize("error", [None, ValueError("no form of aten::x")], ids=["swallowed", "turned into an error"])
def test_a_lost_ctrl_c_ends_the_stage(error):
    console = Console(file=io.StringIO(), width=100)

    def lose_it():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        if error is not None:
            raise error

    with pytest.raises(KeyboardInterrupt), Stages(console)("export"):
        lose_it()
    assert "export" not in console.file.getvalue(), "a stage that was cut gets no tick"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_ctrl_c_errors_stay_what_they_are():
    with pytest.raises(ValueError, match="no form"), Stages(Console(file=io.StringIO()))("export"):
        raise ValueError("no form of aten::x")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


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
    assert console.file.getvalue().rstrip().endswith("GPU  5.00 GiB")
