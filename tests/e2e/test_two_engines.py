"""Two engines of different input sizes in one repository, served together; both have known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from codetr.cli import app
from codetr_client.client import CoDetrClient
from codetr_client.wire import Protocol
from demo.shapes import CLASS_NAMES as SHAPES
from demo.shapes.dataset import write_dataset
from serving.launch import TritonServer
from tests.e2e.conftest import ENGINES
from tests.tiny_engine import tiny_candidates

pytestmark = pytest.mark.server


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", ENGINES)
def test_each_ensemble_answers_by_its_own_engine(both: TritonServer, name: str, protocol: Protocol) -> None:
    _, decay, class_names = ENGINES[name]
    url = both.grpc_url if protocol == "grpc" else both.http_url
    with CoDetrClient(url, protocol, model=name) as client:
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
