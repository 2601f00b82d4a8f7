from __future__ import annotations

import fcntl
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving import versions as versions_module
from serving.errors import CodetrError
from serving.manifest import manifest_path
from serving.model_config import read_model_config
from serving.repository import check_repository, link_repository
from serving.versions import (
    Choice,
    Hold,
    choice_path,
    is_held,
    name_and_version,
    read_choice,
    served_engines,
    versioned,
    versions,
    write_choice,
)
from tests.tiny_engine import write_tiny_repository


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two versions of one engine and one of another."""
    repository = tmp_path_factory.mktemp("two") / "repository"
    for name in ("codetr", "codetr.2", "small"):
        write_tiny_repository(repository, name=name)
    return repository


@pytest.fixture
def repository(two: Path) -> Path:
    choice_path(two, "codetr").unlink(missing_ok=True)
    return two


@pytest.mark.parametrize(("name", "version", "engine"), [("a", 1, "a"), ("a", 2, "a.2"), ("a_b-3", 10, "a_b-3.10")])
def test_a_versions_name_says_which_it_is(name: str, version: int, engine: str) -> None:
    assert versioned(name, version) == engine
    assert name_and_version(engine) == (name, version)


@pytest.mark.parametrize("engine", ["a.0", "a.02", "a.b", "a."])
def test_what_is_no_version_is_a_name(engine: str) -> None:
    assert name_and_version(engine) == (engine, 1)


def test_the_lowest_version_is_served_until_another_is_named(repository: Path) -> None:
    assert versions(repository) == {"codetr": [1, 2], "small": [1]}
    assert served_engines(repository) == ["codetr", "small"]
    write_choice(repository, "codetr", Choice(2, former=1))
    assert read_choice(repository, "codetr") == Choice(2, former=1)
    assert served_engines(repository) == ["codetr.2", "small"]
    assert [path.name for path in repository.iterdir() if path.is_file()] == ["codetr.version"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param('{"version": 3}', "has no version 3 of codetr, which codetr.version names; it has 1, 2", id="no"),
        pytest.param('{"version": "2"}', "has no version '2' of codetr", id="text"),
        pytest.param("2", "does not say which version is served .*; name one with `codetr switch`", id="no object"),
        pytest.param("{}", "does not say which version is served", id="empty"),
        pytest.param("", "does not say which version is served", id="nothing"),
    ],
)
def test_a_file_that_names_no_version_is_refused(repository: Path, content: str, message: str) -> None:
    choice_path(repository, "codetr").write_text(content)
    with pytest.raises(CodetrError, match=message):
        served_engines(repository)
    with pytest.raises(CodetrError, match=message):
        check_repository(repository)


def test_a_repository_that_cannot_be_written_says_who_may_switch(tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match=r"cannot be written .*; only who may write it can say which"):
        write_choice(tmp_path / "nowhere", "codetr", Choice(2))


def test_one_version_of_each_engine_is_linked_and_the_ensemble_says_which(repository: Path, tmp_path: Path) -> None:
    write_choice(repository, "codetr", Choice(2))
    models = link_repository(repository, tmp_path)
    steps = [
        f"{engine}_{step}" for engine in ("codetr.2", "small") for step in ("detector", "postprocess", "preprocess")
    ]
    assert sorted(path.name for path in models.iterdir()) == sorted(["codetr", "small", *steps])
    assert [path.name for path in (models / "codetr").iterdir() if path.is_dir()] == ["2"]
    config = read_model_config(models / "codetr" / "config.pbtxt")
    assert config["name"] == ["codetr"]
    assert config["version_policy"] == [{"specific": [{"versions": ["2"]}]}]
    called = [step["model_name"] for step in config["ensemble_scheduling"][0]["step"]]
    assert called == [["codetr.2_preprocess"], ["codetr.2_detector"], ["codetr.2_postprocess"]]
    assert (models / "codetr.2_detector" / "1" / "model.onnx").resolve().is_relative_to(repository)


def test_a_version_policy_of_the_users_own_is_refused(repository: Path, tmp_path: Path) -> None:
    config = repository / "codetr.2" / "config.pbtxt"
    text = config.read_text()
    write_choice(repository, "codetr", Choice(2))
    config.write_text(text + "version_policy { latest { num_versions: 1 } }\n")
    try:
        with pytest.raises(CodetrError, match=r"config\.pbtxt has a version_policy, .*; take it out"):
            link_repository(repository, tmp_path)
    finally:
        config.write_text(text)


def test_an_engine_is_held_until_the_last_server_lets_it_go(repository: Path) -> None:
    assert not is_held(repository, "codetr")
    first, second = Hold(repository, "codetr"), Hold(repository, "codetr")
    first.release()
    first.release()
    assert is_held(repository, "codetr")
    assert not is_held(repository, "codetr.2")
    second.release()
    assert not is_held(repository, "codetr")


def test_an_engine_that_is_not_there_is_not_held(tmp_path: Path) -> None:
    Hold(tmp_path, "codetr").release()
    assert not is_held(tmp_path, "codetr")


def test_a_build_that_looks_at_this_moment_hinders_no_hold(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = open(manifest_path(repository, "codetr"))  # noqa: SIM115  # until the first pause
    fcntl.flock(looks, fcntl.LOCK_EX)
    monkeypatch.setattr(versions_module, "time", SimpleNamespace(sleep=lambda seconds: looks.close()))
    hold = Hold(repository, "codetr")
    assert looks.closed
    assert is_held(repository, "codetr")
    hold.release()
