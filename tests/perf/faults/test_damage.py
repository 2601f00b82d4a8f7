from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perf.faults import damage
from perf.faults.damage import damages
from serving.errors import CodetrError
from serving.repository import check_repository
from tests.tiny_engine import write_tiny_repository


def test_each_damage_is_said_with_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for an engine that only its runtime can know to be damaged."""

    @contextmanager
    def start(repository: Path) -> Iterator[None]:
        check_repository(repository)
        yield

    monkeypatch.setattr(damage, "running_server", start)
    found = {each.damage: each.message for each in damages(write_tiny_repository(tmp_path / "repository"))}
    assert found.pop("engine cut in the middle, its hash made right") == "it was served"
    assert len(found) == 8
    for kind, message in found.items():
        file = {"engine": "model.onnx", "manifest": "manifest.json", "configuration": "config.pbtxt"}[kind.split()[0]]
        assert "DIR" in message, kind
        assert f"codetr_detector/{'1/' if file == 'model.onnx' else ''}{file}" in message, kind


def test_the_repository_itself_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def start(repository: Path) -> Iterator[None]:
        raise CodetrError("no")
        yield

    monkeypatch.setattr(damage, "running_server", start)
    repository = write_tiny_repository(tmp_path / "repository")
    list(damages(repository))
    check_repository(repository)
