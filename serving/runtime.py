"""What a running server of ours keeps on this machine: a private folder with its record, found again by its ports.

The folder lies where the Python backend keeps its shared memory anyway: such a file system is always there and
writable, never on a disk, and its path has nothing that a shell would take apart, which Triton's start of a Python
step needs. The server and its steps inherit a lock on the folder, so a folder without one, and the shared memory
under its name, are left over from a server that was killed. A second folder, on a disk, is where they put temporary
files: a step that is ended leaves what it unpacked there, as PyTorch does a package of a `torch` engine.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import json
import os
import shutil
import socket
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.errors import CodetrError

SHARED_MEMORY = Path("/dev/shm")
KEY_VARIABLE = "CODETR_ADMIN_KEY"
KEY_HEADER = "codetr-admin"
MORE_ROOM = "give a container more (docker run --shm-size 1g)"
_NAME = "codetr-serve-"
_RECORD = "server.json"


@dataclass(frozen=True)
class ServerRecord:
    """A server that `codetr serve` runs on this machine, as its record says.

    Attributes:
        pid: the process that started it.
        host: the numeric address that gRPC listens on; the other endpoints listen there or on loopback.
        admin_key: opens the endpoints that are not for everybody; None where the caller's own options shut them.
        repository: what it serves.
        tls: whether gRPC speaks TLS.
        gpus: which GPUs it was told to take, None for all.
    """

    pid: int
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    admin_key: str | None
    repository: str
    tls: bool
    gpus: str | None = None


class PrivateFolder:
    """A folder of one server that only its user can enter. `close` removes it and the shared memory of its server.

    Attributes:
        path: of the folder.
        temporary: another such folder, for temporary files; None where there is no disk for them.
        locks: descriptors for the server's processes to inherit.

    Raises:
        CodetrError: from the constructor, there is no shared memory, or it is full.
    """

    def __init__(self) -> None:
        self.temporary: Path | None = None
        try:
            self.path, lock = _locked_folder(SHARED_MEMORY)
        except OSError as error:
            raise CodetrError(
                f"{SHARED_MEMORY} cannot be written ({error.strerror}); Triton's Python steps hand their tensors over "
                f"there: free some of it (ls -l {SHARED_MEMORY}), or {MORE_ROOM}"
            ) from error
        self.locks = [lock]
        with suppress(OSError):  # a server of onnx engines needs none
            self.temporary, lock = _locked_folder(_temporary())
            self.locks.append(lock)

    @property
    def environment(self) -> dict[str, str]:
        """What the server's environment says of where temporary files go."""
        return {} if self.temporary is None else {"TMPDIR": str(self.temporary)}

    @property
    def region_prefix(self) -> str:
        """What the names of the server's shared memory begin with."""
        return f"{self.path.name}_"

    def write_record(self, record: ServerRecord) -> None:
        """Write the record, readable by its user alone, whole or not at all."""
        fresh = self.path / f".{_RECORD}"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(asdict(record), file)
        fresh.replace(self.path / _RECORD)

    def close(self) -> None:
        """Remove both folders and what the server has left in shared memory; its processes must have ended."""
        if self.locks:
            _remove(self.path)
            if self.temporary is not None:
                shutil.rmtree(self.temporary, ignore_errors=True)
        while self.locks:
            os.close(self.locks.pop())


def remove_leftovers() -> int:
    """Remove the folders and the shared memory of this user's servers that were killed; return their number."""
    dead = [path for path in _folders() if not is_running(path)]
    for path in dead:
        _remove(path)
    with suppress(OSError):
        for path in _folders(_temporary()):
            if not is_running(path):
                shutil.rmtree(path, ignore_errors=True)
    return len(dead)


def running_servers() -> list[ServerRecord]:
    """Return what this user's servers on this machine say about themselves, by their ports."""
    return [record for _, record in server_folders()]


def server_folders() -> list[tuple[Path, ServerRecord]]:
    """Return the private folders of this user's servers on this machine with their records, by their ports."""
    found = []
    for path in _folders():
        with suppress(OSError, ValueError, TypeError):  # ends meanwhile, or is of another version
            record = read_record(path)
            if is_running(path):
                found.append((path, record))
    return sorted(found, key=lambda each: each[1].http_port)


def read_record(folder: Path) -> ServerRecord:
    """Return what the server of a private folder says about itself.

    Raises:
        OSError, ValueError, TypeError: the folder is gone, or of another version.
    """
    return ServerRecord(**json.loads((folder / _RECORD).read_text(encoding="utf-8")))


def find_server(address: str) -> ServerRecord | None:
    """Return the record of the server behind an address, or None where it is none that this user runs here.

    Args:
        address: host:port of its HTTP, gRPC or metrics endpoint.
    """
    host, _, port = address.rpartition(":")
    here = [
        record
        for record in running_servers()
        if port in map(str, (record.http_port, record.grpc_port, record.metrics_port))
    ]
    if not here:
        return None
    asked = {each for each in _addresses(host.strip("[]")) if _is_of_this_machine(each)}
    return next((record for record in here if _listens_on(record.host, asked)), None)


def admin_key(address: str) -> str | None:
    """Return the key of the shut endpoints of the server behind host:port.

    It is in the record of a server that this user runs on this machine, and of any other in CODETR_ADMIN_KEY.
    """
    record = find_server(address)
    return record.admin_key if record is not None else os.environ.get(KEY_VARIABLE) or None


def admin_headers(address: str, protocol: str) -> dict[str, str]:
    """Return the headers that open the shut endpoints of the server behind host:port; none without a key.

    `protocol` is "grpc" or "http"; tritonclient takes the result as the `headers` of a call.
    """
    key = admin_key(address)
    if key is None:
        return {}
    return {f"triton-grpc-protocol-{KEY_HEADER}" if protocol == "grpc" else KEY_HEADER: key}


def statistics_headers(address: str, protocol: str) -> dict[str, str]:
    """Return the headers that open the statistics, where the server behind host:port shuts them; else none."""
    record = find_server(address)
    is_open = record is not None and ipaddress.ip_address(record.host).is_loopback
    return {} if is_open else admin_headers(address, protocol)


def _temporary() -> Path:
    """Return the folder of temporary files; raises OSError where none can be written."""
    return Path(tempfile.gettempdir())


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Make a folder with a lock on it; return it and the lock's descriptor. Raises OSError where that is impossible."""
    hidden = Path(tempfile.mkdtemp(prefix=f".{_NAME}", dir=parent))
    lock = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return hidden.rename(hidden.with_name(hidden.name[1:])), lock  # locked before anybody looks for it


def _folders(parent: Path | None = None) -> list[Path]:
    """Return the folders of this user's servers, private ones unless another parent is given."""
    with suppress(OSError):
        found = (entry for entry in os.scandir(parent or SHARED_MEMORY) if entry.name.startswith(_NAME))
        mine = (entry for entry in found if entry.is_dir(follow_symlinks=False) and _owner(entry) == os.getuid())
        return sorted(Path(entry.path) for entry in mine)
    return []


def _owner(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_uid
    except OSError:
        return -1


def is_running(folder: Path) -> bool:
    """Return whether the server of a private folder runs, which has a lock on it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    finally:
        os.close(descriptor)
    return False


def _remove(folder: Path) -> None:
    for region in SHARED_MEMORY.glob(f"{folder.name}_*"):
        with suppress(OSError):
            region.unlink()
    shutil.rmtree(folder, ignore_errors=True)  # links are removed, not what they lead to


def _addresses(host: str) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()


def _is_of_this_machine(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _listens_on(host: str, asked: set[str]) -> bool:
    """Return whether a server on `host` answers at one of the addresses; its HTTP may listen on loopback alone."""
    loopback = any(ipaddress.ip_address(each.partition("%")[0]).is_loopback for each in asked)
    return host in asked or loopback or (bool(asked) and ipaddress.ip_address(host).is_unspecified)
