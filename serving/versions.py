"""Versions of an engine in one repository: which there are, and which of them is served.

Triton has one configuration for all versions of a model, but classes, rules and sizes may differ from version to
version. So version N of the engine NAME is an engine of its own, NAME.N, with its own four models and its own manifest;
version 1 is NAME itself. What is served stands in the file NAME.version; without it, it is the lowest version.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from serving.errors import CodetrError
from serving.manifest import engine_names, manifest_path

# In which a build that looks at this moment, by `is_held`, has let the lock go.
_TRIES = 50
_VERSIONED = re.compile(r"(.+)\.([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class Choice:
    """Which version of an engine is served, and which was before it; None where there was none."""

    version: int
    former: int | None = None


def versioned(name: str, version: int) -> str:
    """Return what version `version` of the engine `name` is called."""
    return name if version == 1 else f"{name}.{version}"


def name_and_version(engine: str) -> tuple[str, int]:
    """Return the name and the version of an engine by what it is called."""
    match = _VERSIONED.fullmatch(engine)
    return (match[1], int(match[2])) if match else (engine, 1)


def versions(repository: Path) -> dict[str, list[int]]:
    """Return the versions that a repository has of each engine, in ascending order."""
    found: dict[str, list[int]] = {}
    for name, version in sorted(map(name_and_version, engine_names(repository))):
        found.setdefault(name, []).append(version)
    return found


def choice_path(repository: Path, name: str) -> Path:
    """Return the file that says which version of an engine is served."""
    return repository / f"{name}.version"


def read_choice(repository: Path, name: str) -> Choice:
    """Return which version of an engine is served.

    Raises:
        CodetrError: the file is none of ours, or the repository lacks that version.
    """
    path, there = choice_path(repository, name), versions(repository).get(name, [])
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        choice = Choice(content["version"], content.get("former"))
    except FileNotFoundError:
        choice = Choice(there[0] if there else 1)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CodetrError(
            f"{path} does not say which version is served ({error}); name one with `codetr switch`"
        ) from error
    if there and choice.version not in there:
        raise CodetrError(
            f"{repository} has no version {choice.version!r} of {name}, which {path.name} names; it has "
            f"{', '.join(map(str, there))}; name one with `codetr switch`"
        )
    return choice


def write_choice(repository: Path, name: str, choice: Choice) -> None:
    """Say which version of an engine is served, whole or not at all.

    Raises:
        CodetrError: the repository cannot be written.
    """
    path = choice_path(repository, name)
    try:
        with tempfile.NamedTemporaryFile("w", dir=repository, prefix=f".{path.name}.", delete=False) as file:
            json.dump({"version": choice.version, "former": choice.former}, file)
        os.chmod(file.name, 0o644)
        Path(file.name).replace(path)
    except OSError as error:
        raise CodetrError(
            f"{repository} cannot be written ({error.strerror}); only who may write it can say which version is served"
        ) from error


def served_engines(repository: Path) -> list[str]:
    """Return what the engines are called that a server of this repository serves, one version of each.

    Raises:
        CodetrError: as `read_choice`.
    """
    return [versioned(name, read_choice(repository, name).version) for name in versions(repository)]


def unserved_engines(repository: Path, served: Sequence[str]) -> list[str]:
    """Return what the other engines of a repository are called."""
    return [engine for engine in engine_names(repository) if engine not in served]


class Hold:
    """Keeps an engine from being overwritten as long as a server has it loaded; `release` lets it go.

    It is a lock on the manifest. Where the disk has no locks it holds nothing.
    """

    def __init__(self, repository: Path, engine: str) -> None:
        self._file = -1
        with suppress(OSError):
            self._file = os.open(manifest_path(repository, engine), os.O_RDONLY | os.O_CLOEXEC)
            for _ in range(_TRIES):
                with suppress(BlockingIOError):
                    fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    break
                time.sleep(0.02)

    def release(self) -> None:
        """Let it go; a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def is_held(repository: Path, engine: str) -> bool:
    """Return whether a server on this machine has an engine loaded."""
    try:
        file = os.open(manifest_path(repository, engine), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False
