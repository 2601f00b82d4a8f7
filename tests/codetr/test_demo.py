import json
from contextlib import nullcontext
from typing import get_args

import pytest
from typer.testing import CliRunner

import codetr.demo
from codetr import cli
from codetr.demo import prepare_repository
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
