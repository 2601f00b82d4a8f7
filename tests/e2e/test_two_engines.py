"""Two engines of different input sizes in one repository, served together; both have known answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from typer.testing import CliRunner

from codetr.cli import app
from codetr_client.client import CoDetrClient
from demo.shapes import CLASS_NAMES as SHAPES
from demo.shapes.dataset import write_dataset
from perf.server.run import ALL_MODELS
from serving.launch import TritonServer, running_server
from tests.markers import needs_perf_analyzer
from tests.tiny_engine import CLASS_NAMES, tiny_candidates, write_tiny_repository

pytestmark = pytest.mark.server

# Engine: its input size, how its scores fall, its class names.
ENGINES = {
    "codetr": ((64, 96), 0.9, CLASS_NAMES),
    "small": ((40, 48), 0.8, (*SHAPES, "a", "b", "c", "d")),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("both")
    for name, ((height, width), decay, class_names) in ENGINES.items():
        write_tiny_repository(
            folder / "repository", height=height, width=width, decay=decay, class_names=class_names, name=name
        )
    with running_server(folder / "repository") as server:
        yield server


@pytest.mark.parametrize("name", ENGINES)
def test_each_ensemble_answers_by_its_own_engine(both: TritonServer, name: str) -> None:
    _, decay, class_names = ENGINES[name]
    with CoDetrClient(both.grpc_url, model=name) as client:
        found = client.detect(np.full((30, 50, 3), 204, np.uint8))
        assert client.class_names() == class_names
    boxes, scores, labels = tiny_candidates(204 / 255, decay)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
    np.testing.assert_allclose(found.boxes, np.clip(boxes * [50, 30, 50, 30], 0, [50, 30, 50, 30]), atol=1e-4)
    assert found.names == tuple(class_names[label] for label in labels)


def test_detect_and_evaluate_take_the_ensemble_by_name(both: TritonServer, tmp_path: Path) -> None:
    annotations = write_dataset(tmp_path / "data", images=2, seed=2)
    images = tmp_path / "data" / "images"
    common = ["--url", both.grpc_url, "--model", "small", "--output"]
    found = CliRunner().invoke(app, ["detect", str(images), *common, str(tmp_path / "detect")], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert set(SHAPES) & set(found.output.split())

    options = ["--annotations", str(annotations), "--images", str(images)]
    evaluated = CliRunner().invoke(
        app, ["evaluate", *options, *common, str(tmp_path / "evaluate")], catch_exceptions=False
    )
    assert evaluated.exit_code == 0, evaluated.output
    assert "server small: images=2" in evaluated.output


def test_a_load_test_takes_the_ensemble_by_name(both: TritonServer, tmp_path: Path) -> None:
    before = {name: answered(both, name) for name in ENGINES}
    command = [sys.executable, "-c", "from codetr.cli import main; main()", "bench", "load", "--model", "small"]
    options = ["--url", both.grpc_url, "--output", str(tmp_path / "load"), "--think", "0", "--seconds", "2"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "load" / "results.json").read_text())
    assert record["outcome"]["requests"] > 0
    assert record["outcome"]["failures"] == 0
    assert answered(both, "small") > before["small"]
    assert answered(both, "codetr") == before["codetr"]


@needs_perf_analyzer
def test_a_sweep_takes_the_ensemble_by_name(both: TritonServer, tmp_path: Path) -> None:
    before = {name: answered(both, name) for name in ENGINES}
    options = ["--concurrency", "1", "--rates", "none", "--repeats", "1", "--window", "0.5", "--pictures", "64x48"]
    addresses = ["--url", both.grpc_url, "--metrics-url", both.metrics_url]
    command = ["bench", "server", "--model", "small", *addresses, "--output", str(tmp_path), *options]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["ensemble"] == "small"
    assert [(each["model"], each["error"]) for each in record["results"]] == [(model, "") for model in ALL_MODELS]
    assert set(record["results"][0]["steps"]) == set(ALL_MODELS)
    assert "engine `small`" in (tmp_path / "report.md").read_text()
    assert answered(both, "small") > before["small"]
    assert answered(both, "codetr") == before["codetr"]


def answered(server: TritonServer, model: str) -> int:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        return int(client.get_inference_statistics(model).model_stats[0].inference_count)
