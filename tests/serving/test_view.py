from __future__ import annotations

from pathlib import Path

from serving.repository import link_model, link_repository
from serving.view import add, make_reloadable, reload, remove, replace_config


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
