"""Naming a version, with stand-ins for servers; tests/e2e/test_switch.py has real ones."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving import switch as module
from serving.errors import CodetrError
from serving.runtime import ServerRecord
from serving.switch import switch
from serving.switcher import Note, stamp
from serving.versions import Choice, choice_path, read_choice, write_choice
from tests.tiny_engine import write_tiny_repository


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


class Server:
    """A server of this user, which says `state` of each order; `tried` are the versions that ran by themselves."""

    def __init__(self, repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository, self.folder, self.state, self.fault = repository, folder, "serving", None
        self.tried: list[tuple[list[str], str | None]] = []
        self.say("serving", 1)
        record = ServerRecord(1, "127.0.0.1", 1, 2, 3, None, str(repository), tls=False, gpus="1")
        monkeypatch.setattr(module, "server_folders", lambda: [(folder, record)])
        monkeypatch.setattr(module, "read_record", lambda folder: record)
        monkeypatch.setattr(module, "is_running", lambda folder: self.state != "ended")
        monkeypatch.setattr(module, "running_server", self.run)
        monkeypatch.setattr(module, "why_no_answer", lambda url, model, timeout: self.fault)
        # the module's own clock: a patched time.sleep would let every other thread of this process write the note too
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: self.say(self.state, 2))
        monkeypatch.setattr(module, "time", clock)

    def say(self, state: str, version: int) -> None:
        note = Note(version, state, "no memory", stamp(self.repository, "codetr"))  # type: ignore[arg-type]
        (self.folder / "codetr.switch").write_text(json.dumps(asdict(note)))

    @contextmanager
    def run(self, repository: Path, timeout: float, engines: list[str], gpus: str | None) -> Iterator[Any]:
        assert read_choice(repository, "codetr").version == 1, "it is tried before anybody is told"
        self.tried.append((engines, gpus))
        yield SimpleNamespace(http_url="")


def test_two_switches_of_a_repository_do_not_meet(repository: Path) -> None:
    @contextmanager
    def meanwhile(name: str) -> Iterator[None]:
        with pytest.raises(CodetrError, match=r"another switch of .* is under way; try again when it is done"):
            switch(repository, "codetr", 2, 1.0)
        yield

    assert switch(repository, "codetr", 2, 1.0, meanwhile) == (Choice(2, 1), 0)
    assert switch(repository, "codetr", 1, 1.0) == (Choice(1, 2), 0)


@pytest.fixture
def server(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(repository, tmp_path, monkeypatch)


def test_without_a_server_the_next_start_serves_it(repository: Path) -> None:
    assert switch(repository, "codetr", 2, 1) == (Choice(2, former=1), 0)
    assert switch(repository, "codetr", 2, 1) == (Choice(2, former=1), 0), "a second time changes nothing"
    assert switch(repository, "codetr", None, 1) == (Choice(1, former=2), 0)
    assert read_choice(repository, "codetr") == Choice(1, former=2)


def test_a_server_takes_it_over_after_a_trial_on_its_gpus(server: Server, repository: Path) -> None:
    assert switch(repository, "codetr", 2, 5) == (Choice(2, former=1), 1)
    assert server.tried == [(["codetr.2"], "1")]


def test_a_server_that_has_taken_it_over_is_not_late(
    server: Server, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine stood still meanwhile."""

    def write(*values: Any) -> None:
        write_choice(*values)
        server.say("serving", 2)

    times = iter([0.0])
    monkeypatch.setattr(module, "write_choice", write)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(times, 1000.0), sleep=time.sleep))
    assert switch(repository, "codetr", 2, 5) == (Choice(2, former=1), 1)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("failed", "has not taken version 2 over: no memory"),
        ("ended", "ended before it had taken the version over"),
        ("loading", "has not taken the version over within 0.01 s"),
    ],
)
def test_a_server_that_does_not_take_it_over_leaves_the_choice(
    server: Server, repository: Path, state: str, message: str
) -> None:
    before = Choice(1, former=2)
    write_choice(repository, "codetr", before)
    server.state = state
    with pytest.raises(CodetrError, match=message):
        switch(repository, "codetr", 2, 0.01 if state == "loading" else 5)
    assert read_choice(repository, "codetr") == before


def test_a_version_that_does_not_answer_reaches_no_server(server: Server, repository: Path) -> None:
    server.fault = "codetr cannot answer: RuntimeError"  # type: ignore[assignment]
    with pytest.raises(CodetrError, match="version 2 does not answer: codetr cannot answer: RuntimeError"):
        switch(repository, "codetr", 2, 5)
    assert not choice_path(repository, "codetr").exists()


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        pytest.param("codetr", 3, "has no version 3 of codetr; it has 1, 2$", id="version"),
        pytest.param("other", 1, "has no engine 'other'; it has codetr", id="name"),
        pytest.param("codetr", None, "no version of codetr was served before version 1; name one$", id="none"),
    ],
)
def test_what_is_not_there_is_refused(repository: Path, name: str, version: int | None, message: str) -> None:
    with pytest.raises(CodetrError, match=message):
        switch(repository, name, version, 1)


def test_a_damaged_version_is_refused(repository: Path) -> None:
    file = repository / "codetr.2_detector" / "1" / "model.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    try:
        with pytest.raises(CodetrError, match=r"model\.onnx is not the file that was built"):
            switch(repository, "codetr", 2, 1)
    finally:
        file.write_bytes(whole)
