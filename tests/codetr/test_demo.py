import json
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
from typer.testing import CliRunner

import codetr.demo
from codetr import cli
from codetr.demo import prepare_repository
from codetr_client.detections import Detections
from codetr_client.files import Detected
from demo import Family
from serving.errors import CodetrError


def test_an_engine_of_another_model_is_not_replaced(tmp_path):
    manifest = json.dumps({"network": {"name": "cats"}, "weights": {"sha256": "0"}})
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(CodetrError, match=r"holds an engine of cats, not the demo's co_dino_demo.*another --output"):
        prepare_repository(tmp_path, lambda name: nullcontext())
    assert (tmp_path / "manifest.json").read_text() == manifest


def test_each_family_has_a_folder_of_its_own(tmp_path, monkeypatch):
    class PreparedError(Exception):
        pass

    def prepare(repository, stages, family):
        raise PreparedError(str(repository))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(codetr.demo, "prepare_repository", prepare)
    runs = [CliRunner().invoke(cli.app, ["demo", "--family", family]) for family in get_args(Family)]
    runs.append(CliRunner().invoke(cli.app, ["demo", "--family", "rtdetrv2", "--output", "mine"]))
    assert [str(run.exception) for run in runs] == [
        "runs/demo/repository", "runs/demo-rtdetrv2/repository", "mine/repository",
    ]  # fmt: skip  # one for each family, then the named one


def test_the_page_comes_after_the_boxes_and_before_the_server_ends(tmp_path, monkeypatch):
    happened = []

    @contextmanager
    def running_server(repository):
        happened.append("serves")
        yield SimpleNamespace(grpc_url="127.0.0.1:7", http_url="127.0.0.1:8")
        happened.append("ended")

    def detect_files(client, images, output, threshold):
        happened.append("detected")
        empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), ())
        return [Detected(images[0], (1, 1), empty, output / "sample.jpg")]

    monkeypatch.setattr(codetr.demo, "prepare_repository", lambda *given: None)
    monkeypatch.setattr("serving.launch.running_server", running_server)
    monkeypatch.setattr("codetr_client.files.detect_files", detect_files)
    monkeypatch.setattr("codetr.web.show_page", lambda options: happened.append((options.urls, options.port)))
    for words in ([], ["--web"]):
        assert CliRunner().invoke(cli.app, ["demo", "--output", str(tmp_path), *words]).exit_code == 0
    alone = ["serves", "detected", "ended"]
    assert happened == [*alone, *alone[:2], (["127.0.0.1:7"], 0), "ended"]
