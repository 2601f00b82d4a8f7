from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from serving.contract import DETECTOR, ENSEMBLE, PLUGIN_LIBRARY, POSTPROCESS, PREPROCESS, model_name
from serving.errors import CodetrError
from serving.manifest import manifest_path, sha256
from serving.repository import check_repository, find_plugin, has_version_compatible_plans, link_repository


def add_engine(repository: Path, name: str, plugin: str | None = None, **manifest: object) -> None:
    """Add an engine, with `plugin` as the content of its TensorRT plugin and further entries of its manifest."""
    for model in (ENSEMBLE, PREPROCESS, DETECTOR, POSTPROCESS):
        (repository / model_name(model, name) / "1").mkdir(parents=True, exist_ok=True)
        (repository / model_name(model, name) / "config.pbtxt").touch()
    for step in (PREPROCESS, POSTPROCESS):
        (repository / model_name(step, name) / "1" / "model.py").touch()
    files = {}
    if plugin is not None:
        path = f"{model_name(DETECTOR, name)}/1/{PLUGIN_LIBRARY}"
        (repository / path).write_text(plugin)
        files[path] = sha256(repository / path)
    manifest_path(repository, name).write_text(json.dumps({"files": files, **manifest}))


def test_missing_repository_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match=r"no repository at .*nowhere; write one there with `codetr build"):
        check_repository(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "part",
    [
        "codetr/1",
        "codetr_preprocess/1/model.py",
        "codetr_postprocess/1/model.py",
        "codetr_detector/config.pbtxt",
        "codetr_detector/manifest.json",
    ],
)
def test_incomplete_repository_names_the_part(repository: Path, part: str) -> None:
    check_repository(repository)
    path = repository / part
    path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(CodetrError, match=f"is incomplete: {part} is missing; build it again"):
        check_repository(repository)


@pytest.mark.parametrize("part", ["large/1", "large_postprocess/config.pbtxt", "large_detector/manifest.json"])
def test_every_engine_must_be_complete(repository: Path, part: str) -> None:
    add_engine(repository, "large")
    check_repository(repository)
    path = repository / part
    path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(CodetrError, match=f"is incomplete: {part} is missing; build it again"):
        check_repository(repository)


@pytest.mark.parametrize("model", ["codetr", "codetr_preprocess", "codetr_detector", "codetr_postprocess"])
def test_a_configuration_that_is_cut_short_is_named(repository: Path, model: str) -> None:
    (repository / model / "config.pbtxt").write_text("input [ { name: ")
    with pytest.raises(CodetrError, match=rf"{model}/config\.pbtxt cannot be read .*: it ends too early"):
        check_repository(repository)


@pytest.mark.parametrize("content", ["nothing", "photos", "one of the models"])
def test_a_folder_without_an_engine_is_not_called_incomplete(repository: Path, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jpg").touch() if content == "photos" else None
    with pytest.raises(CodetrError, match=r"holds no engine; name a folder that `codetr build` has written"):
        check_repository(repository / PREPROCESS if content == "one of the models" else folder)


def test_folders_that_are_no_models_are_named(repository: Path) -> None:
    (repository / ".repository.abcdefgh").mkdir()
    (repository / "photos").mkdir()
    (repository / "another_model").mkdir()
    (repository / "another_model" / "config.pbtxt").touch()
    with pytest.raises(CodetrError, match=r"that are no models: \.repository\.abcdefgh, photos; .* remove them"):
        check_repository(repository)


def test_every_engines_files_are_compared_with_their_hashes(repository: Path) -> None:
    add_engine(repository, "large", plugin="built")
    check_repository(repository)
    (repository / "large_detector" / "1" / PLUGIN_LIBRARY).write_text("changed")
    with pytest.raises(CodetrError, match=rf"{PLUGIN_LIBRARY} is not the file that was built.*, manifest\.json says"):
        check_repository(repository)


def test_the_plugin_of_the_plans_is_loaded_once(repository: Path) -> None:
    assert find_plugin(repository) is None
    add_engine(repository, "codetr", plugin="built")
    add_engine(repository, "large", plugin="built")
    assert find_plugin(repository) == Path("codetr_detector", "1", PLUGIN_LIBRARY)


def test_the_plugin_may_lie_beside_any_engine(repository: Path) -> None:
    add_engine(repository, "large", plugin="built")
    assert find_plugin(repository) == Path("large_detector", "1", PLUGIN_LIBRARY)


def test_a_plan_that_the_python_backend_runs_loads_its_own_plugin(repository: Path) -> None:
    add_engine(repository, "codetr", plugin="built")
    add_engine(repository, "old", plugin="built for TensorRT 8", plan_backend="python")
    assert find_plugin(repository) == Path("codetr_detector", "1", PLUGIN_LIBRARY)


def test_plans_of_different_plugins_cannot_be_served_together(repository: Path) -> None:
    add_engine(repository, "codetr", plugin="built in May")
    add_engine(repository, "large", plugin="built in June")
    with pytest.raises(
        CodetrError, match=r"engines codetr, large of .* come with different builds of libcodetr_plugin"
    ):
        find_plugin(repository)


def test_version_compatible_plans_are_found(repository: Path) -> None:
    add_engine(repository, "large", version_compatible=False)
    assert not has_version_compatible_plans(repository)
    add_engine(repository, "large", version_compatible=True)
    assert has_version_compatible_plans(repository)


def test_a_file_that_may_not_be_read_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_engine(repository, "codetr", plugin="built")

    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("serving.manifest.sha256", refuse)
    with pytest.raises(
        CodetrError, match=rf"{PLUGIN_LIBRARY} cannot be read \(Permission denied\); let user \d+ read it"
    ):
        check_repository(repository)


def test_a_path_too_long_to_exist_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match="no repository at "):
        check_repository(tmp_path / ("x" * 5000))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_links_show_the_same_repository_under_another_path(repository: Path, tmp_path: Path) -> None:
    add_engine(repository, "codetr", plugin="built")
    (repository / "codetr_detector" / "warmup").mkdir()
    (repository / "codetr_detector" / "warmup" / "image_sizes").write_bytes(b"1")
    (repository / "README").write_text("no model")
    os.chdir(tmp_path)
    models = link_repository(Path(repository.name), tmp_path)
    expected = files(repository)
    del expected["README"]
    linked = {str(path.relative_to(models)) for path in models.rglob("*")}
    assert linked - {str(path.relative_to(repository)) for path in repository.rglob("*")} == set()
    assert {name: (models / name).read_bytes() for name in expected} == expected
    assert (models / "codetr" / "1").is_dir()
    assert not (models / "README").exists()


def test_what_is_written_beside_a_link_stays_out_of_the_repository(repository: Path, tmp_path: Path) -> None:
    version = repository / "codetr_preprocess" / "1"
    (version / "model.py").touch()
    (version / "__pycache__").mkdir()
    models = link_repository(repository, tmp_path)
    linked = models / "codetr_preprocess" / "1"
    assert [path.name for path in linked.iterdir()] == ["model.py"]
    (linked / "__pycache__").mkdir()
    assert list((version / "__pycache__").iterdir()) == []


def test_a_repository_that_is_to_change_is_one_link(repository: Path, tmp_path: Path) -> None:
    models = link_repository(repository, tmp_path, snapshot=False)
    (repository / "new").mkdir()
    assert (models / "new").is_dir()
