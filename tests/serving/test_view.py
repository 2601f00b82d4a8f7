from __future__ import annotations

from pathlib import Path

from serving.repository import link_repository
from serving.view import make_reloadable, reload


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
