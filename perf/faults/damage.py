"""Repositories that were damaged after they were built, and what a start says of each."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.contract import DETECTOR
from serving.errors import CodetrError
from serving.launch import running_server
from serving.manifest import FILES, manifest_path, sha256


@dataclass(frozen=True)
class Damaged:
    """What a start said of one."""

    damage: str
    message: str  # "it was served" where it was not noticed


def damages(repository: Path) -> Iterator[Damaged]:
    """Yield what a start says of each kind of damage to a repository of one `onnx` engine called `codetr`."""
    for damage, do in _DAMAGES.items():
        with tempfile.TemporaryDirectory(prefix="codetr-faults-") as folder:
            copy = Path(shutil.copytree(repository, Path(folder, "repository")))
            do(copy)
            try:
                with running_server(copy):
                    yield Damaged(damage, "it was served")
            except CodetrError as error:
                yield Damaged(damage, str(error).replace(str(copy), "DIR"))


def _engine(repository: Path) -> Path:
    return next((repository / DETECTOR / "1").glob("model.onnx"))


def _cut(repository: Path) -> None:
    engine = _engine(repository)
    engine.write_bytes(engine.read_bytes()[: engine.stat().st_size // 2])


def _cut_with_its_hash(repository: Path) -> None:
    _cut(repository)
    engine = _engine(repository)
    hashes = {str(engine.relative_to(repository)): sha256(engine)}
    _change(repository, lambda manifest: {**manifest, FILES: {**manifest[FILES], **hashes}})


def _foreign(repository: Path) -> None:
    _engine(repository).write_bytes(b"an engine of another program")


def _change(repository: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = manifest_path(repository)
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


_DAMAGES: dict[str, Callable[[Path], object]] = {
    "engine cut in the middle": _cut,
    "engine cut in the middle, its hash made right": _cut_with_its_hash,
    "engine missing": lambda repository: _engine(repository).unlink(),
    "engine of another program": _foreign,
    "manifest of schema 99": lambda repository: _change(repository, lambda manifest: {**manifest, "schema": 99}),
    "manifest that is a list": lambda repository: _change(repository, lambda manifest: [1]),
    "manifest cut": lambda repository: manifest_path(repository).write_text('{"schema": 4, "fi'),
    "manifest missing": lambda repository: manifest_path(repository).unlink(),
    "configuration cut": lambda repository: (repository / DETECTOR / "config.pbtxt").write_text("name: "),
}
