"""A server that follows its repository, with stand-ins for Triton; tests/e2e/test_switch.py has a real one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.contract import PLUGIN_LIBRARY
from serving.manifest import manifest_path, sha256
from serving.model_config import read_model_config
from serving.repository import link_repository
from serving.switcher import EndedError, Switcher, read_note, stamp
from serving.versions import Choice, choice_path, is_held, write_choice
from serving.view import make_reloadable
from tests.tiny_engine import write_tiny_repository

OLD = {"codetr", "codetr_preprocess", "codetr_detector", "codetr_postprocess"}
NEW = {"codetr", "codetr.2_preprocess", "codetr.2_detector", "codetr.2_postprocess"}


class Watchdog:
    def __init__(self) -> None:
        self.watched = OLD - {"codetr"}
        self.server_is_loading = False

    def adopt(self, models: Iterable[str]) -> None:
        self.watched |= set(models)

    def drop(self, models: Iterable[str]) -> None:
        self.watched -= set(models)


class Server:
    """What Triton says: `status` of a path, lines of its log, and a step that died while it was loaded."""

    def __init__(self, repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository, self.folder, self.models = repository, folder, folder / "models"
        make_reloadable(link_repository(repository, folder))
        self.status: Callable[[str], int] = lambda path: 200
        self.fault: str | None = None
        self.log: list[str] = []
        self.died: tuple[str, int] | None = None
        self.seen: list[tuple[str, bool]] = []  # paths that were asked, and whether the watchdog knew of the load
        self.said: list[tuple[str, bool]] = []
        self.watchdog = Watchdog()
        monkeypatch.setattr("serving.switcher.ask", self.ask)
        monkeypatch.setattr("serving.switcher.why_no_answer", lambda url, model, timeout: self.fault)
        stubs = SimpleNamespace(died=lambda begun: self.died, statuses=lambda begun: {})
        monkeypatch.setattr("serving.switcher.LoadingStubs", lambda pid: stubs)
        monkeypatch.setattr("serving.switcher._RETIRE_SECONDS", 0)
        monkeypatch.setattr("serving.switcher._LOOK", 0)

    def ask(self, url: str, path: str, timeout: float) -> tuple[int, bytes]:
        self.seen.append((path, self.watchdog.server_is_loading))
        return self.status(path), b""

    def follow(self, load_seconds: float = 60.0, knows_limit: bool = False) -> Switcher:
        return Switcher(
            self.repository,
            self.folder,
            ["codetr"],
            "url",
            1,
            lambda said, is_wrong: self.said.append((said, is_wrong)),
            lambda count: (self.log[count:], len(self.log)),
            self.watchdog,  # type: ignore[arg-type]
            load_seconds,
            knows_limit,
        )

    @property
    def loaded(self) -> set[str]:
        return {path.name for path in self.models.iterdir()}

    @property
    def note(self) -> Any:
        return read_note(self.folder, "codetr")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("versions") / "repository"
    for name in ("codetr", "codetr.2"):
        write_tiny_repository(repository, name=name)
    return repository


@pytest.fixture
def repository(written: Path) -> Path:
    choice_path(written, "codetr").unlink(missing_ok=True)
    return written


@pytest.fixture
def server(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(repository, tmp_path, monkeypatch)


@pytest.fixture
def switcher(server: Server) -> Iterator[Switcher]:
    switcher = server.follow()
    yield switcher
    switcher.stop()


def unchanged(server: Server, switcher: Switcher) -> None:
    """The old version serves as before."""
    assert server.loaded == OLD
    assert switcher.serving == {"codetr": 1}
    assert server.watchdog.watched == OLD - {"codetr"}
    assert not server.watchdog.server_is_loading
    assert (is_held(server.repository, "codetr"), is_held(server.repository, "codetr.2")) == (True, False)


def test_nothing_happens_until_another_version_is_named(server: Server, switcher: Switcher) -> None:
    switcher.look()
    assert (server.note.version, server.note.state) == (1, "serving")
    write_choice(server.repository, "codetr", Choice(1))
    switcher.look()
    assert server.note.stamp == stamp(server.repository, "codetr"), "who waits for that file is answered"
    assert server.said == []
    unchanged(server, switcher)


def test_a_version_is_loaded_beside_the_other_and_takes_its_place(server: Server, switcher: Switcher) -> None:
    beside: list[set[str]] = []
    server.status = lambda path: beside.append(server.loaded) or 200  # type: ignore[func-returns-value]
    write_choice(server.repository, "codetr", Choice(2))
    switcher.look()
    assert beside == [OLD | NEW | {"codetr.2"}] * 2
    assert server.seen == [("/v2/models/codetr.2/ready", True), ("/v2/models/codetr/versions/2/ready", True)]
    assert server.loaded == NEW
    config = read_model_config(server.models / "codetr" / "config.pbtxt")
    assert config["name"] == ["codetr"]
    assert [step["model_name"] for step in config["ensemble_scheduling"][0]["step"]][1] == ["codetr.2_detector"]
    assert switcher.serving == {"codetr": 2}
    assert server.watchdog.watched == NEW - {"codetr"}
    assert (server.note.version, server.note.state) == (2, "serving")
    assert [is_wrong for _, is_wrong in server.said] == [False, False]
    assert (is_held(server.repository, "codetr"), is_held(server.repository, "codetr.2")) == (False, True)
    assert {path.name for path in server.folder.iterdir()} == {"models", "codetr.switch"}, "nothing is left over"

    write_choice(server.repository, "codetr", Choice(1))
    switcher.look()
    assert server.loaded == OLD
    assert switcher.serving == {"codetr": 1}


@pytest.mark.parametrize("knows_limit", [False, True], ids=["a release without the field", "one that has it"])
def test_its_ensembles_have_the_limit_that_those_of_a_start_have(server: Server, knows_limit: bool) -> None:
    limits: list[object] = []

    def look(path: str) -> int:
        name = path.split("/")[3]
        (scheduling,) = read_model_config(server.models / name / "config.pbtxt")["ensemble_scheduling"]
        limits.append((name, scheduling.get("max_inflight_requests")))
        return 200

    switcher = server.follow(knows_limit=knows_limit)
    server.status = look
    for version in (2, 1):
        write_choice(server.repository, "codetr", Choice(version))
        switcher.look()
    switcher.stop()
    expected = ["320"] if knows_limit else None
    assert limits == [(name, expected) for name in ("codetr.2", "codetr", "codetr.1", "codetr")]


def test_what_was_named_during_the_start_is_taken_over(server: Server) -> None:
    write_choice(server.repository, "codetr", Choice(2))
    switcher = server.follow()
    switcher.look()
    assert switcher.serving == {"codetr": 2}
    switcher.stop()


def test_a_version_that_does_not_answer_goes_again(server: Server, switcher: Switcher) -> None:
    server.fault = "codetr.2 cannot answer: why"
    write_choice(server.repository, "codetr", Choice(2))
    switcher.look()
    unchanged(server, switcher)
    assert (server.note.state, server.note.reason) == ("failed", "codetr.2 cannot answer: why")
    assert server.said[-1] == (
        "version 2 of codetr is not taken over: codetr.2 cannot answer: why; version 1 goes on",
        True,
    )
    switcher.look()
    assert len(server.said) == 2, "it is not tried again by itself"
    server.fault = None
    write_choice(server.repository, "codetr", Choice(2))
    switcher.look()
    assert switcher.serving == {"codetr": 2}


def test_a_version_that_fails_to_load_goes_with_triton_s_reason(server: Server, switcher: Switcher) -> None:
    server.log = ["""E0101 "failed to load 'codetr.2_detector' version 1: Internal: of an earlier try\""""]

    def fails(path: str) -> int:
        server.log.append("""E0101 "failed to load 'codetr.2_detector' version 1: Internal: no memory\"""")
        return 400

    server.status = fails
    write_choice(server.repository, "codetr", Choice(2))
    switcher.look()
    unchanged(server, switcher)
    assert server.note.reason == "model codetr.2_detector failed to load: no memory"


def test_an_ensemble_that_does_not_change_over_keeps_its_configuration(server: Server) -> None:
    switcher = server.follow(load_seconds=0.5)
    before = (server.models / "codetr" / "config.pbtxt").read_text()
    server.status = lambda path: 400 if path.endswith("/versions/2/ready") else 200
    write_choice(server.repository, "codetr", Choice(2))
    switcher.look()
    unchanged(server, switcher)
    assert (server.models / "codetr" / "config.pbtxt").read_text() == before
    assert server.note.reason == "codetr was not ready within 0.5 s"
    switcher.stop()


def test_a_death_that_triton_never_sees_is_said(
    server: Server, switcher: Switcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.switcher._NOTICED_SECONDS", -1)
    server.status, server.died = lambda path: 400, ("codetr.2_detector", -9)
    write_choice(server.repository, "codetr", Choice(2))
    switcher.look()
    unchanged(server, switcher)
    assert server.note.reason.startswith("codetr.2_detector was ended by SIGKILL")
    assert server.note.reason.endswith("this server loads nothing more, restart it when that suits")


def test_a_plugin_that_the_server_has_not_loaded_is_refused(server: Server, switcher: Switcher) -> None:
    path = manifest_path(server.repository, "codetr.2")
    plugin = path.parent / "1" / PLUGIN_LIBRARY
    before = path.read_text()
    plugin.write_text("another build")
    manifest = json.loads(before)
    manifest["files"][f"codetr.2_detector/1/{PLUGIN_LIBRARY}"] = sha256(plugin)
    path.write_text(json.dumps(manifest))
    try:
        write_choice(server.repository, "codetr", Choice(2))
        switcher.look()
    finally:
        path.write_text(before)
        plugin.unlink()
    unchanged(server, switcher)
    assert (
        f"{PLUGIN_LIBRARY} of codetr.2 is another build than the one that this server has loaded" in server.note.reason
    )


@pytest.mark.parametrize("content", ["", '{"version": 7}', "[]"])
def test_a_file_that_names_no_version_changes_nothing(server: Server, switcher: Switcher, content: str) -> None:
    choice_path(server.repository, "codetr").write_text(content)
    for _ in range(2):
        switcher.look()
    ((said, is_wrong),) = server.said
    assert said.endswith("; version 1 of codetr goes on")
    assert is_wrong
    unchanged(server, switcher)


def test_a_repository_that_goes_away_changes_nothing(server: Server, switcher: Switcher, tmp_path: Path) -> None:
    write_choice(server.repository, "codetr", Choice(1))
    switcher.look()
    away = server.repository.rename(tmp_path / "away")
    switcher.look()
    away.rename(server.repository)
    assert server.said == []
    unchanged(server, switcher)


def test_an_end_gives_up_what_is_begun(server: Server, switcher: Switcher) -> None:
    def ends(path: str) -> int:
        switcher.stop()
        return 400

    server.status = ends
    write_choice(server.repository, "codetr", Choice(2))
    with pytest.raises(EndedError):
        switcher.look()
    assert not is_held(server.repository, "codetr")
    assert not is_held(server.repository, "codetr.2")
