"""A server on small and full disks and on a repository that nothing may write to, in mounts that only it sees.

`python -m perf.faults.places CASE REPOSITORY ROOM` is one of them, from within its mounts; it prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from perf.faults.run import Connection
from perf.pictures import encoded_picture
from serving.errors import CodetrError
from serving.launch import TritonServer, free_ports, running_server
from serving.manifest import sha256
from serving.runtime import SHARED_MEMORY

SHARED_MEMORY_MIB = (64, 24, 8, 3, 1)
USER = 10001  # the image's
# An encoded image that a small /dev/shm cannot hold beside the tensors of three instances.
_LARGE = (5000, 4000)


@dataclass(frozen=True)
class Placed:
    """What a server did in a place."""

    place: str
    started: str  # "yes", or why not, or "not tried: ..."
    note: str  # what the start said
    large: str  # the answer to three large images at once: "answered", or what was wrong
    afterwards: str  # to a small one, from the same processes
    full: str  # to a small one with the file system filled to its last byte; "" where none was filled
    end: int | None  # exit status
    is_unchanged: bool  # whether every file of the repository is as it was


def places(repository: Path) -> Iterator[Placed]:
    """Yield what a server does in each place, or that this machine does not let us try."""
    for size in SHARED_MEMORY_MIB:
        mount = f"mount -t tmpfs -o size={size}m tmpfs /dev/shm"
        yield _within([mount], "shared-memory", repository, f"/dev/shm of {size} MiB")
    repository = repository.absolute()
    here = shlex.quote(str(repository))
    read_only = [f"mount --bind {here} {here}", f"mount -o remount,bind,ro {here}"]
    yield _within(read_only, "read-only", repository, "a repository mounted read-only")
    if os.getuid() == 0:
        user = f"setpriv --reuid {USER} --regid {USER} --clear-groups"
        yield _within(read_only, "read-only", repository, f"the same as user {USER}", user)
    with tempfile.TemporaryDirectory(prefix="codetr-faults-") as folder:
        disk = [f"mount -t tmpfs -o size=64k tmpfs {folder}", f"{{ cat /dev/zero > {folder}/filled || true; }}"]
        yield _within(disk, "full-disk", repository, "log and temporary files on a full disk", room=folder)


def _within(mounts: Sequence[str], case: str, repository: Path, place: str, user: str = "", room: str = "") -> Placed:
    unshare = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
    script = " && ".join([*mounts, f'exec {user} "$@"'])
    child = [sys.executable, "-m", "perf.faults.places", case, str(repository.absolute()), room]
    done = subprocess.run(
        [*unshare, "sh", "-c", script, "sh", *child],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    try:
        return Placed(**{**json.loads(done.stdout.splitlines()[-1]), "place": place})
    except (ValueError, IndexError, TypeError):
        lines = (done.stderr or done.stdout).strip().splitlines()
        return Placed(place, f"not tried: {lines[-1] if lines else done.returncode}", "", "", "", "", None, True)


def _shared_memory(repository: Path, room: str) -> Placed:
    before = _state(repository)
    try:
        with running_server(repository) as server:
            processes = _steps(server)
            with Connection(server) as connection:
                large = connection.ask(encoded_picture(*_LARGE), 60.0, None).error or "answered"
                afterwards = _small(connection, server, processes)
                _fill(SHARED_MEMORY / "filled")
                full = _small(connection, server, processes)
                (SHARED_MEMORY / "filled").unlink()
            end = server.stop()
            return Placed("", "yes", " ".join(server.notes), large, afterwards, full, end, _state(repository) == before)
    except CodetrError as error:
        return Placed("", str(error), "", "", "", "", None, _state(repository) == before)


def _read_only(repository: Path, room: str) -> Placed:
    before = _state(repository)
    with running_server(repository) as server:
        processes = _steps(server)
        with Connection(server) as connection:
            afterwards = _small(connection, server, processes)
        end = server.stop()
        return Placed("", "yes", " ".join(server.notes), "", afterwards, "", end, _state(repository) == before)


def _full_disk(repository: Path, room: str) -> Placed:
    before = _state(repository)
    http, grpc, metrics = free_ports(3)
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    program = [sys.executable, "-c", "from codetr.cli import main; main()"]
    command = [*program, "serve", "--repository", str(repository), *ports, "--verbose"]
    with Path(room, "filled").open("ab") as log:
        served = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": room}, cwd=room)
        answer = _first_answer(f"127.0.0.1:{grpc}")
        served.send_signal(signal.SIGTERM)
        return Placed("", "yes", "", "", answer, answer, served.wait(60), _state(repository) == before)


def _fill(path: Path) -> None:
    """Write a file until its file system has no byte left."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 10)):
            pass


def _first_answer(url: str) -> str:
    until = time.monotonic() + 60
    with Connection(url) as connection:
        while (answer := connection.ask(encoded_picture(640, 480), 10.0, None)).error and time.monotonic() < until:
            time.sleep(0.2)
    return answer.error or "answered"


def _small(connection: Connection, server: TritonServer, processes: set[int]) -> str:
    answer = connection.ask(encoded_picture(640, 480), 60.0, None)
    if answer.error:
        return answer.error
    return "answered" if _steps(server) == processes else "answered, by other processes"


def _steps(server: TritonServer) -> set[int]:
    import psutil

    return {child.pid for child in psutil.Process(server.process.pid).children()}


def _state(repository: Path) -> list[tuple[str, int, str]]:
    files = (path for path in sorted(repository.rglob("*")) if path.is_file())
    return [(str(path), path.stat().st_mtime_ns, sha256(path)) for path in files]


_CASES = {"shared-memory": _shared_memory, "read-only": _read_only, "full-disk": _full_disk}

if __name__ == "__main__":
    print(json.dumps(asdict(_CASES[sys.argv[1]](Path(sys.argv[2]), sys.argv[3]))))
