from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from perf.cost.cases import MAX_BATCH_SIZE, Case
from perf.cost.repository import MODEL, write_cost_repository
from serving.manifest import read_manifest
from serving.repository import check_repository
from serving.shared_engine import is_guest


def config(repository: Path, model: str) -> Any:
    text = (repository / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_a_repository_is_complete_and_its_detector_is_the_fixed_cost(tmp_path: Path) -> None:
    repository = write_cost_repository(tmp_path / "repository", Case(96, 64, preprocess=3, postprocess=1), 12.5)
    check_repository(repository)
    detector = config(repository, "codetr_detector")
    assert list(detector.input[0].dims) == [64, 96, 3]
    assert detector.max_batch_size == MAX_BATCH_SIZE
    version = repository / "codetr_detector" / "1"
    assert json.loads((version / "cost.json").read_text()) == {"cost_ms": 12.5}
    assert (version / "model.py").read_bytes() == MODEL.read_bytes()
    assert sorted(path.name for path in version.iterdir()) == ["cost.json", "model.py"]
    assert config(repository, "codetr_preprocess").instance_group[0].count == 3
    assert config(repository, "codetr_postprocess").instance_group[0].count == 1
    manifest = read_manifest(repository, "codetr")
    assert (manifest["engine"], manifest["width"], list(manifest["files"])) == (
        "fixed_cost", 96, ["codetr_detector/1/cost.json"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("case", "batching", "delay"),
    [
        pytest.param(Case(96, 64), True, 0, id="batching without delay"),
        pytest.param(Case(96, 64, delay_ms=5), True, 5000, id="with delay"),
        pytest.param(Case(96, 64, dynamic_batching=False), False, 0, id="none"),
    ],
)
def test_batching(tmp_path: Path, case: Case, batching: bool, delay: int) -> None:
    detector = config(write_cost_repository(tmp_path / "repository", case, 1), "codetr_detector")
    assert detector.HasField("dynamic_batching") is batching
    assert detector.dynamic_batching.max_queue_delay_microseconds == delay


def test_guests_share_the_engine(tmp_path: Path) -> None:
    engine, guests = config(
        write_cost_repository(tmp_path / "repository", Case(96, 64, guests=2), 1), "codetr_detector"
    ).instance_group
    assert (engine.count, guests.count, is_guest(guests.name)) == (1, 2, True)
