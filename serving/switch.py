"""Names the version of an engine that is to be served, and waits until the servers on this machine have taken it over.

The order is a file of the repository, so who may write that may give it, also to servers of other users, in containers
and on other machines that see the same disk. What they answer is known of this user's servers on this machine alone.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from serving.errors import CodetrError
from serving.health import why_no_answer
from serving.launch import running_server
from serving.manifest import no_repository, unknown_engine
from serving.repository import check_repository
from serving.runtime import is_running, read_record, server_folders
from serving.switcher import read_note, stamp
from serving.versions import Choice, choice_path, name_and_version, read_choice, versioned, versions, write_choice

_LOOK = 0.2

# Shows one stage of a switch while it runs, by its name.
Stage = Callable[[str], AbstractContextManager[object]]


def switch(
    repository: Path,
    name: str,
    version: int | None,
    timeout: float,
    stage: Stage = lambda name: nullcontext(),
) -> tuple[Choice, int]:
    """Have a version of an engine served from now on, by running servers and by those that will start.

    Where a server of this user serves the repository on this machine, the version is first tried in a server of its
    own: what crashes there crashes nothing else.

    Args:
        repository: the engine's.
        name: of the engine.
        version: None for the one before the present one.
        timeout: seconds for the trial, and again for the servers.
        stage: shows what is done.

    Returns:
        The choice that holds now, and how many servers have taken it over.

    Raises:
        CodetrError: there is no such version, it does not work, a server refused it, or another switch is under way;
            the choice is as before.
    """
    found = versions(repository)
    if not found:
        raise no_repository(repository)
    with _alone(repository):
        return _switch(repository, name, version, timeout, stage, found)


@contextmanager
def _alone(repository: Path) -> Iterator[None]:
    """Keep other switches of a repository off meanwhile: each would wait for what the other has replaced.

    It is a lock on the folder. Where the disk has no locks it keeps nobody off.
    """
    folder = os.open(repository, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise CodetrError(f"another switch of {repository} is under way; try again when it is done") from None
        yield
    finally:
        os.close(folder)


def _switch(
    repository: Path, name: str, version: int | None, timeout: float, stage: Stage, found: Mapping[str, Sequence[int]]
) -> tuple[Choice, int]:
    there = found.get(name)
    if not there:
        raise unknown_engine(repository, name, list(found))
    before, put_back = _before(repository, name, version)
    wanted = before.former if version is None else version
    if wanted is None:
        raise CodetrError(f"no version of {name} was served before version {before.version}; name one")
    if wanted not in there:
        known = ", ".join(map(str, there))
        raise CodetrError(f"{repository} has no version {wanted} of {name}; it has {known}")
    engine = versioned(name, wanted)
    with stage("check the files"):
        check_repository(repository, [engine])
    servers = _servers(repository, name)
    if servers and wanted != before.version:
        with stage("try it in a server of its own"):
            _try(repository, engine, timeout, read_record(servers[0]).gpus)
    choice = before if wanted == before.version else Choice(wanted, before.version or None)
    write_choice(repository, name, choice)
    try:
        with stage("wait for the servers") if servers else nullcontext():
            _wait(servers, repository, name, timeout)
    except BaseException:
        put_back()
        raise
    return choice, len(servers)


def _before(repository: Path, name: str, version: int | None) -> tuple[Choice, Callable[[], object]]:
    """Return the choice before a switch, and what puts it back.

    Where the file says nothing that holds and a version is named, that is the way out: version 0 stands for none.
    """
    path = choice_path(repository, name)
    try:
        before = read_choice(repository, name)
    except CodetrError:
        if version is None:
            raise
        return Choice(0), partial(path.write_bytes, path.read_bytes())
    return before, partial(write_choice, repository, name, before)


def _servers(repository: Path, name: str) -> list[Path]:
    """Return the private folders of this user's servers that follow what the repository says."""
    found = ((folder, Path(record.repository)) for folder, record in server_folders())
    return [
        folder for folder, other in found if other.is_dir() and other.samefile(repository) and read_note(folder, name)
    ]


def _try(repository: Path, engine: str, timeout: float, gpus: str | None) -> None:
    try:
        with running_server(repository, timeout=timeout, engines=[engine], gpus=gpus) as server:
            fault = why_no_answer(server.http_url, name_and_version(engine)[0], timeout)
    except CodetrError as error:
        raise CodetrError(f"version {name_and_version(engine)[1]} does not start: {error}") from error
    if fault:
        raise CodetrError(f"version {name_and_version(engine)[1]} does not answer: {fault}")


def _wait(servers: list[Path], repository: Path, name: str, timeout: float) -> None:
    written, until = stamp(repository, name), time.monotonic() + timeout
    waiting = list(servers)
    while waiting:
        notes = {folder: read_note(folder, name) for folder in waiting}
        for folder, note in notes.items():
            if not is_running(folder):
                raise CodetrError(f"a server of {repository} ended before it had taken the version over")
            if note is None or note.stamp != written:
                continue
            if note.state == "failed":
                raise CodetrError(f"a server of {repository} has not taken version {note.version} over: {note.reason}")
            if note.state == "serving":
                waiting.remove(folder)
        if waiting and time.monotonic() > until:
            raise CodetrError(f"a server of {repository} has not taken the version over within {timeout:g} s")
        time.sleep(_LOOK)
