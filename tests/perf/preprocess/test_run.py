from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perf.pictures import encoded_picture
from perf.preprocess import run as bench
from perf.preprocess.run import GpuCase, PostprocessCase, PreprocessCase
from serving.errors import CodetrError
from serving.preprocess import preprocess
from tests.markers import missing

STEP = PreprocessCase("jpeg", 640, 480, 86_000, 450.0, 0.01, 500.0, 0.02, 12)
POST = PostprocessCase(300, "soft", 279, 1.25, 0.015, 700)


def test_both_sides_do_the_same_resize() -> None:
    data = encoded_picture(90, 61)
    bare = bench.decode_and_resize(data, 96, 128)
    ours = preprocess(data, 96, 128)
    assert bare.shape[:2] == ours.image_size
    assert np.array_equal(bare[..., ::-1], ours.images[: bare.shape[0], : bare.shape[1]])


def test_calls_alternate_and_are_warmed_up_first() -> None:
    called: list[str] = []
    summaries = bench.alternate([lambda: called.append("a"), lambda: called.append("b")], seconds=0, minimum=3)
    assert called == ["a", "b"] * 4
    assert [summary.count for summary in summaries] == [3, 3]


def test_candidates_are_what_a_detector_makes() -> None:
    boxes, scores, labels = bench.candidates(300)
    assert (boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int32)
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    assert (np.diff(scores) <= 0).all()
    assert boxes.min() >= 0
    assert boxes.max() <= 1


def test_what_a_gpu_would_do_is_measured_beside_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nvImageCodec's own decoder for CPUs, whose pixels are the CPU's."""
    if importlib.util.find_spec("nvidia.nvimgcodec") is None:
        missing("no nvImageCodec: pip install -e '.[dev]' brings it on x86-64 Linux")
    monkeypatch.setattr(bench, "PICTURE_SIZES", ((90, 61),))
    (case,) = bench.measure_gpu((96, 64), seconds=0, device=None)
    assert (case.width, case.height, case.mean_difference, case.max_difference) == (90, 61, 0, 0)
    assert min(case.gpu_ms, case.gpu_resize_ms, case.gpu_decode_ms) > 0


def test_a_picture_that_no_gpu_decodes_ends_the_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "GpuPreprocessor", lambda *arguments: lambda data, canvas: None)
    with pytest.raises(CodetrError, match="the GPU left the picture to the CPU"):
        next(bench.measure_gpu((96, 64), seconds=0))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure_preprocess", lambda *arguments: iter([STEP]))
    monkeypatch.setattr(bench, "measure_postprocess", lambda *arguments: iter([POST]))


def test_a_run_writes_json_and_markdown(measured: None, tmp_path: Path) -> None:
    heard: list[object] = []
    record = bench.run((1152, 768), ["jpeg"], [300], 1.0, tmp_path / "out", heard.append)
    assert heard == [STEP, POST]
    assert json.loads((tmp_path / "out" / "preprocess.json").read_text()) == record
    assert record["preprocess"][0]["share"] == pytest.approx(0.9)
    markdown = (tmp_path / "out" / "preprocess.md").read_text()
    assert "| jpeg | 640x480 | 86 | 450.0 ± 1% | 500.0 ± 2% | 90% |" in markdown
    assert "| 300 | soft | 279 | 1.250 ± 2% |" in markdown


def test_decoding_on_a_gpu_is_measured_where_it_is_asked_for(
    measured: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = GpuCase(640, 480, 93_000, 2.1, 0.02, 1.2, 0.85, 1.9, 7.8, 1e-5, 1, 40)
    monkeypatch.setattr(bench, "measure_gpu", lambda *arguments: iter([case]))
    assert bench.run((96, 64), [], [], 1.0, tmp_path, lambda case: None)["jpeg_decoder_gpu"] == []
    assert "on a GPU" not in (tmp_path / "preprocess.md").read_text()
    bench.run((96, 64), [], [], 1.0, tmp_path, lambda case: None, "gpu")
    row = "| 640x480 | 93 | 2.10 ± 2% | 1.20 | 0.85 | 1.90 | 7.80 | 1e-05, at most 1 |"
    assert row in (tmp_path / "preprocess.md").read_text()


@pytest.mark.parametrize(
    ("steps", "verdict"),
    [
        pytest.param([STEP, replace(STEP, width=1920, height=1080)], "reached with 90%.", id="reached"),
        pytest.param([replace(STEP, width=1920, height=1080, images_per_s=300.0)], "missed with 60%.", id="missed"),
        pytest.param([STEP], "", id="not measured"),
    ],
)
def test_goal(steps: list[PreprocessCase], verdict: str) -> None:
    said = bench.goal_verdict(bench.to_record((1152, 768), steps, []))
    assert said.endswith(verdict)
    assert bool(said) == bool(verdict)


def test_ctrl_c_keeps_what_was_measured(measured: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(bench, "measure_postprocess", interrupted)
    bench.run((1152, 768), ["jpeg"], [300], 1.0, tmp_path, lambda case: None)
    record = json.loads((tmp_path / "preprocess.json").read_text())
    assert len(record["preprocess"]) == 1
    assert record["postprocess"] == []
