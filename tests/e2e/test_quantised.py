"""A demo in INT8, built and served as a user would: the server answers as the engine in this process does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from codetr.cli import app
from demo import WEIGHTS
from demo.shapes.dataset import write_dataset
from serving.launch import running_server
from serving.manifest import read_manifest

pytestmark = [pytest.mark.server, pytest.mark.slow]

IMAGES = 6
SIZE = ["--height", "192", "--width", "288", "--batch", "2"]


@pytest.fixture(scope="module")
def quantised(built_once: Callable[..., Path]) -> Path:
    def build(path: Path) -> None:
        words = ["build", "rtdetrv2_demo", "--weights", str(WEIGHTS["rtdetrv2"]), *SIZE, "--engine", "onnx"]
        run([*words, "--precision", "int8", "--calibration-count", "8", "--repository", str(path)])

    return built_once("int8", build)


def run(words: list[str]) -> str:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_an_int8_engine_is_served_as_it_answers_in_this_process(quantised: Path, tmp_path: Path) -> None:
    assert read_manifest(quantised)["quantisation"]["layers"] == ["backbone-convs", "neck"]
    weights = onnx.load(quantised / "codetr_detector" / "1" / "model.onnx").graph.initializer
    assert sum(tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4 for tensor in weights) == 47

    annotations = write_dataset(tmp_path / "data", images=IMAGES, seed=7)
    common = ["evaluate", "--annotations", str(annotations), "--images", str(tmp_path / "data" / "images")]
    common += ["--repository", str(quantised)]
    run([*common, "--source", "onnx", "--output", str(tmp_path / "onnx")])
    with running_server(quantised) as server:
        run([*common, "--url", server.grpc_url, "--concurrency", "1", "--output", str(tmp_path / "server")])
    here, served = (json.loads((tmp_path / each / "detections.json").read_text()) for each in ("onnx", "server"))
    assert len(here) == len(served) > 50 * IMAGES
    for key in ("image_id", "category_id"):
        assert [each[key] for each in served] == [each[key] for each in here]
    np.testing.assert_allclose([each["score"] for each in served], [each["score"] for each in here], atol=1e-5)
    np.testing.assert_allclose([each["bbox"] for each in served], [each["bbox"] for each in here], atol=1e-2)
    ap, ap_served = (json.loads((tmp_path / each / "accuracy.json").read_text())["ap"] for each in ("onnx", "server"))
    assert 0.5 < ap == ap_served
