from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from builder.pipeline.export import InputSpec  # after the check for torch
from perf.engine import trtexec
from serving.errors import CodetrError


@pytest.fixture
def fake_trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n[ $1 = fail ] && exit 3\necho '[I] Latency: min = 9 ms, median = 9.5 ms'\n"
        "echo '[I] GPU Compute Time: min = 7.0 ms, max = 8.0 ms, mean = 7.4 ms, median = 7.3125 ms, percentile'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/bin:/usr/bin")
    return program


@pytest.mark.parametrize("batch", [1, 4])
def test_trtexec_measures_the_same_plan(tmp_path: Path, batch: int) -> None:
    spec = InputSpec(768, 1152, batch)
    sizes = trtexec.write_sizes(spec, tmp_path / "sizes.bin")
    assert np.fromfile(sizes, "<i4").tolist() == [768, 1152] * batch
    (tmp_path / "libcodetr_plugin.so").touch()
    words = trtexec.command(tmp_path / "model.plan", spec, sizes).split()
    assert words[:3] == [
        "trtexec",
        f"--loadEngine={tmp_path}/model.plan",
        f"--staticPlugins={tmp_path}/libcodetr_plugin.so",
    ]
    assert {"--useCudaGraph", "--useSpinWait", "--noDataTransfers", f"--loadInputs=image_sizes:{sizes}"} <= set(words)
    assert ("--shapes=images:4x768x1152x3,image_sizes:4x2" in words) == spec.is_dynamic


def test_trtexec_is_given_what_the_plan_has(tmp_path: Path) -> None:
    line = trtexec.command(tmp_path / "model.plan", InputSpec(64, 96, 4), tmp_path / "sizes.bin", ("images",))
    assert "--shapes=images:4x64x96x3 " in line
    assert "image_sizes" not in line
    assert "staticPlugins" not in line, "no plugin lies beside it"


def test_trtexecs_median_is_read(fake_trtexec: Path, tmp_path: Path) -> None:
    assert trtexec.run("trtexec --loadEngine=x", tmp_path / "log.txt") == 7.3125
    assert "Latency" in (tmp_path / "log.txt").read_text()
    with pytest.raises(CodetrError, match=r"status 3 and no time; .*log.txt says why"):
        trtexec.run("trtexec fail", tmp_path / "log.txt")


def test_without_trtexec_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert trtexec.run("trtexec", tmp_path / "log.txt") is None
    assert not (tmp_path / "log.txt").exists()
