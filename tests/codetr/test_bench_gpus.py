from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from codetr.cli import app
from perf.gpus import run as module
from serving.errors import CodetrError


def bench(*words: str) -> Any:
    return CliRunner().invoke(app, ["bench", "gpus", "--repository", "r", *words], catch_exceptions=False)


@pytest.mark.parametrize("gpus", ["0", "0,0", "all", "0,", "0,x"])
def test_two_gpus_are_needed(gpus: str, tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match=f"--gpus '{gpus}': expected at least two different numbers, such as 0,1"):
        bench("--gpus", gpus, "--output", str(tmp_path))


@pytest.mark.parametrize("difference", [0.0, 0.5])
def test_runs_are_shown_and_gpus_that_differ_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, difference: float
) -> None:
    def run(
        repository: Path, name: str, gpus: list[int], ways: tuple[str, ...], concurrency: list[int], *rest: Any
    ) -> dict[str, Any]:
        assert (gpus, ways, concurrency) == ([0, 1], ("processes", "server"), [16, 32])
        rest[-1](module.GpuResult("server", (0, 1), 16, 95.0, difference))
        return {"ratios": {"server 16": 1.9}, "results": [{"largest_difference": difference}]}

    monkeypatch.setattr(module, "run", run)
    words = ["--concurrency", "16,32", "--output", str(tmp_path)]
    if difference:
        with pytest.raises(CodetrError, match=r"the GPUs do not agree: a score differs by 0\.500, more than 0\.02"):
            bench(*words)
        return
    said = bench(*words).output
    assert "way=server gpus=0,1 concurrency=16 images_per_s=95.0 largest_difference=0 failures=0 identical=None" in said
    assert "server 16: 1.90 times as many images a second on all GPUs" in said
