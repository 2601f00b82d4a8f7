from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from model_repository import TEMPLATES
from serving.errors import CodetrError
from serving.model_config import read_model_config
from serving.repository import link_model, link_repository
from serving.view import add, bound_ensembles, make_reloadable, reload, remove, replace_config


def newest(folder: Path) -> float:
    """What Triton compares: the newest time of change of a folder and what is in it, links followed."""
    paths = [folder, *folder.rglob("*")]
    return max(max(path.stat().st_mtime, path.stat().st_ctime) for path in paths)


def test_only_a_reload_is_news(repository: Path, tmp_path: Path) -> None:
    (repository / "codetr_detector" / "1" / "model.py").touch()
    models = link_repository(repository, tmp_path)
    make_reloadable(models)
    before = {model: newest(models / model) for model in ("codetr", "codetr_detector")}
    (repository / "codetr_detector" / "config.pbtxt").write_text("changed")
    (repository / "codetr_detector" / "1" / "model.py").write_text("changed")
    (models / "codetr_detector" / "1" / "written beside it").touch()
    assert {model: newest(models / model) for model in ("codetr", "codetr_detector")} == before
    for step in (1, 2):
        reload(models, "codetr_detector")
        assert newest(models / "codetr_detector") == before["codetr_detector"] + step
    assert newest(models / "codetr") == before["codetr"]


def test_a_model_that_comes_back_is_news(repository: Path, tmp_path: Path) -> None:
    models = link_repository(repository, tmp_path)
    make_reloadable(models)
    before = newest(models / "codetr_detector")
    for count in (1, 2):
        aside = tmp_path / "aside"
        aside.mkdir()
        remove(models, "codetr_detector", aside)
        assert not aside.exists()
        assert not (models / "codetr_detector").exists()
        link_model(repository / "codetr_detector", tmp_path / "codetr_detector")
        add(models, tmp_path / "codetr_detector", count)
        assert newest(models / "codetr_detector") == before + count


def test_a_configuration_is_replaced_before_it_is_news(repository: Path, tmp_path: Path) -> None:
    models = link_repository(repository, tmp_path)
    make_reloadable(models)
    before, ours = newest(models / "codetr"), (repository / "codetr" / "config.pbtxt").read_text()
    replace_config(models, "codetr", "another")
    assert newest(models / "codetr") == before + 1
    assert (models / "codetr" / "config.pbtxt").read_text() == "another"
    assert (repository / "codetr" / "config.pbtxt").read_text() == ours, "not through the link"
    assert [path.name for path in models.iterdir() if path.is_file()] == []


def ensemble(folder: Path, limit: str | None = "320") -> Path:
    """A folder of links to an ensemble that `codetr build` would write, as `link_repository` makes it."""
    text = (TEMPLATES / "codetr" / "config.pbtxt").read_text(encoding="utf-8")
    assert text.count('"320"') == 1
    if limit is None:
        text = "".join(line for line in text.splitlines(keepends=True) if '"320"' not in line)
    (folder / "built" / "codetr").mkdir(parents=True)
    built = folder / "built" / "codetr" / "config.pbtxt"
    built.write_text(text.replace('"320"', f'"{limit}"'), encoding="utf-8")
    return link_repository(folder / "built", folder)


@pytest.mark.parametrize(("limit", "expected"), [("320", ["320"]), ("7", ["7"]), (None, ["320"]), ("0", None)], ids=str)
def test_a_server_that_knows_the_limit_is_given_it(
    tmp_path: Path, limit: str | None, expected: list[str] | None
) -> None:
    models = ensemble(tmp_path, limit)
    before = (tmp_path / "built" / "codetr" / "config.pbtxt").read_bytes()
    bound_ensembles(models, ["codetr"], is_known=True)
    (scheduling,) = read_model_config(models / "codetr" / "config.pbtxt")["ensemble_scheduling"]
    assert scheduling.get("max_inflight_requests") == expected
    assert len(scheduling["step"]) == 3
    text = (models / "codetr" / "config.pbtxt").read_text(encoding="utf-8")
    as_triton_reads = text_format.Parse(text, model_config_pb2.ModelConfig()).ensemble_scheduling
    assert as_triton_reads.max_inflight_requests == int(expected[0] if expected else 0)
    assert (tmp_path / "built" / "codetr" / "config.pbtxt").read_bytes() == before  # the repository is not written


def test_one_that_does_not_gets_the_file_as_it_was_built(tmp_path: Path) -> None:
    models = ensemble(tmp_path)
    bound_ensembles(models, ["codetr"], is_known=False)
    assert (models / "codetr" / "config.pbtxt").is_symlink()


@pytest.mark.parametrize("limit", ["-1", "many", "", "1.5", "4294967296"])
def test_an_impossible_limit_ends_the_start_with_every_release(tmp_path: Path, limit: str) -> None:
    models = ensemble(tmp_path, limit)
    with pytest.raises(CodetrError, match=r"^codetr: max_inflight_requests: expected 0 or more requests, got '"):
        bound_ensembles(models, ["codetr"], is_known=False)
