"""Further GPUs, with processes of an engine for CPUs in their place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perf.gpus.run import GpuResult, ratios, run
from serving.errors import CodetrError
from serving.manifest import manifest_path


@pytest.mark.engine
@pytest.mark.slow
def test_processes_are_measured_together_and_compared(repository: Path, tmp_path: Path) -> None:
    seen: list[GpuResult] = []
    record = run(repository, "codetr", [0, 1], ["processes"], [16], 0.2, tmp_path / "out", seen.append)
    assert [(each.gpus, each.identical, each.largest_difference) for each in seen] == [
        ((0,), True, 0.0),
        ((0, 1), True, 0.0),
    ]
    assert record["ratios"] == {"processes 1": seen[1].images_per_s / seen[0].images_per_s}
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(record))


@pytest.mark.engine
def test_an_engine_that_cannot_be_run_says_on_which_gpu(repository: Path, tmp_path: Path) -> None:
    other = tmp_path / "repository"
    (other / "codetr_detector").mkdir(parents=True)
    manifest = json.loads(manifest_path(repository).read_text())
    manifest_path(other).write_text(json.dumps({**manifest, "files": {}}))
    with pytest.raises(CodetrError, match=r"GPU 0: \w+: .*model\.onnx"):
        run(other, "codetr", [0, 1], ["processes"], [1], 0.1, tmp_path / "out")


def test_a_ratio_is_of_the_same_way_and_load() -> None:
    results = [
        GpuResult("server", (0,), 16, 50.0, 0.0),
        GpuResult("server", (0,), 32, 60.0, 0.0),
        GpuResult("server", (0, 1), 16, 75.0, 0.0),
        GpuResult("server", (0, 1), 32, 114.0, 0.0),
    ]
    assert ratios(results) == {"server 16": 1.5, "server 32": 1.9}
