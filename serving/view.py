"""What a server is shown of a repository: a time by which a model is loaded anew, and a limit that its release knows.

The server loads the links that `serving.repository.link_repository` makes, in Triton's mode `poll`. Both protocols
refuse to load and unload then, so no client can, and every second Triton looks whether the newest time of change in a
model's folder has grown. If so it loads the model beside the old one, and changes over when the new one is ready. Each
folder gets one file of a time far ahead. So what changes in the repository itself is not loaded, as in the mode `none`;
only `reload` makes that time grow, in a folder that only the server's user can enter.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serving.errors import CodetrError
from serving.model_config import parameter, read_model_config, with_field

POLL_OPTIONS = ("--model-control-mode=poll", "--repository-poll-secs=1")
_GENERATION = "generation"
# The most requests in one step of an ensemble, in Triton since the end of 2025; also the name of our setting for it.
INFLIGHT = "max_inflight_requests"
_AHEAD = 2_114_380_800  # seconds: 1 January 2037, which every file system can store


@dataclass(frozen=True)
class EnsembleSettings:
    """The parameters of an ensemble that are settings.

    Attributes:
        max_inflight_requests: the most requests in one of its steps; 0 for no limit. Triton holds up what is more, and
            the connections that its thread serves, so it is above every queue that refuses (256 and what is computed).
    """

    max_inflight_requests: int = 320

    @classmethod
    def of(cls, path: Path) -> EnsembleSettings:
        """Return those of a `config.pbtxt`.

        Raises:
            CodetrError: a value is impossible.
        """
        text = parameter(read_model_config(path), INFLIGHT)
        if text is None:
            return cls()
        if not text.isdecimal() or int(text) >= 2**32:
            raise CodetrError(f"{path.parent.name}: {INFLIGHT}: expected 0 or more requests, got {text!r}")
        return cls(int(text))


def bound_ensembles(models: Path, names: Iterable[str], is_known: bool) -> None:
    """Give the ensembles of a folder that a server is to load their limit, where its release knows such a thing.

    Args:
        models: the folder; a link in it becomes a file.
        names: of the ensembles.
        is_known: whether the server's configurations have the field `INFLIGHT`.

    Raises:
        CodetrError: the setting of one is impossible.
    """
    for path in filter(Path.exists, (models / name / "config.pbtxt" for name in names)):
        limit = EnsembleSettings.of(path).max_inflight_requests
        if is_known and limit:
            text = with_field(path.read_text(encoding="utf-8"), "ensemble_scheduling", INFLIGHT, limit)
            path.unlink()
            path.write_text(text, encoding="utf-8")


def make_reloadable(models: Path) -> None:
    """Give each model of the folder that a server is to load the file by which `reload` works."""
    for model in models.iterdir():
        _set_generation(model, _AHEAD)


def add(models: Path, model: Path, count: int) -> None:
    """Move a model's folder into that of a server, which loads it within a second or so.

    Args:
        models: what the server loads.
        model: a folder on the same disk; its name becomes the model's.
        count: another one each time, so that a model that was there before is news.
    """
    _set_generation(model, _AHEAD + count)
    model.rename(models / model.name)


def remove(models: Path, model: str, aside: Path) -> None:
    """Move a model out of the folder of a server, which unloads it when it has answered what it has of it.

    Args:
        models: what the server loads.
        model: its name.
        aside: an empty folder on the same disk, which goes with it.
    """
    (models / model).rename(aside / model)
    shutil.rmtree(aside)


def reload(models: Path, model: str) -> None:
    """Let the server of a folder load a model anew; it begins within a second or so."""
    generation = models / model / _GENERATION
    next_time = generation.stat().st_mtime + 1
    os.utime(generation, (next_time, next_time))


def replace_config(models: Path, model: str, text: str) -> None:
    """Give a loaded model another configuration, with which its server loads it anew."""
    fresh = models.parent / f"{model}.pbtxt"  # outside: a change of the folder before its time is loaded half
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(models / model / "config.pbtxt")
    reload(models, model)


def _set_generation(model: Path, seconds: float) -> None:
    (model / _GENERATION).touch()
    os.utime(model / _GENERATION, (seconds, seconds))
