"""One engine for several instances of a detector: the first has it, the others, its guests, hand it their batches.

While the engine computes one instance's batch, another's is copied to where the GPU fetches it, so the GPU waits for
nothing between two batches. A guest is a process without an engine and without a GPU: its batches lie in memory that it
shares with the engine's process, which page-locks it.

Each process answers its own requests. A single one that took a batch while its engine still computes another could
answer only after `execute` has returned, and then nobody would if it died: Triton 2.51 forgets such requests.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.admission import private_folder
from serving.contract import DETECTOR, ENSEMBLE, GUESTS
from serving.errors import CodetrError
from serving.metrics import ENGINE_BUSY, Recorder, unrecorded
from serving.stubs import stubs_of

Array = NDArray[Any]

_STEP = DETECTOR.removeprefix(ENSEMBLE)
# How long a guest waits for the engine, and for the process that is to load it: less if that has said why it could not.
LOAD_SECONDS, ABSENT_SECONDS, FAILED_SECONDS = 600.0, 20.0, 2.0
_COUNT = struct.Struct("<i")
_TEXT_LIMIT = 4096
_PAGE = mmap.PAGESIZE


class EngineGoneError(RuntimeError):
    """The process that has the engine has ended, or its engine has failed."""


Kind = tuple[Sequence[int], str]  # of a tensor: one image's shape and the type, such as ((768, 1152, 3), "uint8")


@dataclass(frozen=True)
class Layout:
    """The memory of an engine's inputs and outputs, for the largest batch."""

    inputs: Sequence[Kind]
    outputs: Sequence[Kind]
    max_batch_size: int

    def place(self, memory: mmap.mmap) -> tuple[list[Array], list[Array]]:
        """Return arrays of the largest batch in `memory`, which has `size` bytes."""
        arrays, offset = [], 0
        for shape, kind in (*self.inputs, *self.outputs):
            whole = (self.max_batch_size, *shape)
            array: Array = np.frombuffer(memory, kind, int(np.prod(whole)), offset).reshape(whole)
            arrays.append(array)
            offset += _whole_pages(array.nbytes)
        return arrays[: len(self.inputs)], arrays[len(self.inputs) :]

    @property
    def size(self) -> int:
        """Bytes of the largest batch, each tensor on pages of its own."""
        both = (*self.inputs, *self.outputs)
        return sum(
            _whole_pages(self.max_batch_size * int(np.prod(shape)) * np.dtype(kind).itemsize) for shape, kind in both
        )


class Engine(Protocol):
    """An engine that computes for its own process, and in memory of others."""

    def __call__(self, *inputs: Array) -> Sequence[Array]:
        """Return boxes, scores and labels of images uint8 [B, H, W, 3] with valid sizes int32 [B, 2]."""

    def tensors(self) -> tuple[Sequence[Kind], Sequence[Kind]]:
        """Return what it reads and writes."""

    def adopt(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[int], None]:
        """Return what computes the first so many images of `inputs` into `outputs`; several may be called at once."""

    def release(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Forget memory that was adopted."""


Own = TypeVar("Own", bound=Engine)


class BusyTime:
    """Counts how long an engine computes that several threads ask: what overlaps is counted once."""

    def __init__(self, record: Recorder) -> None:
        self._record = record
        self._lock = threading.Lock()
        self._ended = 0.0

    @contextmanager
    def run(self) -> Iterator[None]:
        """Count the time from here, or from the end of the run before if that comes later, to the end."""
        began = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                now = time.perf_counter()
                seconds, self._ended = now - max(began, self._ended), now
            self._record(ENGINE_BUSY, seconds)


class OwnEngine:
    """An engine of this process that others use too: called as it is itself, and its time counted."""

    def __init__(self, engine: Any, busy: BusyTime) -> None:
        self._engine, self._busy = engine, busy

    def __call__(self, *inputs: Array) -> Sequence[Array]:
        """Return what the engine does."""
        with self._busy.run():
            outputs: Sequence[Array] = self._engine(*inputs)
            return outputs

    def buffers(self, batch: int) -> list[Array]:
        """Return the memory in which the engine reads the inputs of a batch, if it has such."""
        found: list[Array] = self._engine.buffers(batch)
        return found


def join(
    args: Mapping[str, str], load: Callable[[], Own], record: Recorder = unrecorded
) -> tuple[Own | OwnEngine | EngineGuest, Callable[[], None]]:
    """Return what an instance of a detector computes with, and what ends that.

    Args:
        args: of the instance, as Triton gives them to `initialize`.
        load: loads the engine; not called for a guest, which waits until the engine is there.
        record: takes the seconds that an engine with guests has computed, `metrics.ENGINE_BUSY`.

    Raises:
        EngineGoneError: no engine came.
    """
    config = json.loads(args["model_config"])
    where = socket_path(config["name"], args["model_version"], args["model_instance_device_id"], private_folder())
    if is_guest(args["model_instance_name"]):
        guest = EngineGuest(where)
        guest.buffers(1)
        return guest, guest.close
    if not any(is_guest(group["name"]) for group in config["instance_group"]):
        return load(), lambda: None
    reason, mine = _reason_path(where), _loader_path(where, os.getpid())
    reason.unlink(missing_ok=True)
    for former in _loader_files(where, os.getpid()):  # of a process that had this id before
        former.unlink()
    mine.touch()
    try:
        engine = load()
    except Exception as error:  # Triton tells what a guest says, if that fails later
        reason.write_text(f"{type(error).__name__}: {error}"[:_TEXT_LIMIT], encoding="utf-8")
        raise
    busy = BusyTime(record)
    host = EngineHost(engine, int(config["max_batch_size"]), where, busy)

    def leave() -> None:
        host.close()
        mine.unlink(missing_ok=True)

    return OwnEngine(engine, busy), leave


def is_guest(name: str) -> bool:
    """Return whether a detector's instance, or group of them, of such a name is a guest."""
    return name.rpartition(_STEP)[2].startswith(GUESTS)


def socket_path(model: str, version: str, device: str, folder: Path | None = None) -> Path:
    """Return where the engine of a detector's instances on one device is found.

    Args:
        model: the detector's name on the server.
        version: its version.
        device: the GPU's number.
        folder: the server's private folder; without one a folder of this user and server in that for temporary files.

    Raises:
        CodetrError: somebody else's lies there.
    """
    if folder is None:
        folder = Path(tempfile.gettempdir(), f"codetr-{os.getuid()}-{os.getppid()}")
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if not folder.is_dir() or folder.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise CodetrError(f"{folder} is not a folder of this user's alone; remove it")
    return folder / f"{model}-{version}-{device}.engine"


class EngineHost:
    """Offers this process's engine to guests, each served by a thread of its own.

    Args:
        engine: what computes.
        max_batch_size: images.
        path: where guests look; an earlier engine's is replaced, so guests of a model that is loaded anew come here.
        busy: counts the time of their batches.
    """

    def __init__(self, engine: Engine, max_batch_size: int, path: Path, busy: BusyTime | None = None) -> None:
        self._engine, self._path = engine, path
        self._busy = BusyTime(unrecorded) if busy is None else busy
        self._layout = Layout(*engine.tensors(), max_batch_size)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        with _short(fresh) as name:
            self._socket.bind(name)
        fresh.chmod(0o600)
        self._socket.listen()
        self._inode = fresh.stat().st_ino
        fresh.replace(path)
        threading.Thread(target=self._welcome, name="guests", daemon=True).start()

    def close(self) -> None:
        """Offer it no longer; guests that are here go on until their processes end."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for guests
        self._socket.close()
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _welcome(self) -> None:
        while True:
            try:
                guest, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(guest,), name="guest", daemon=True).start()

    def _serve(self, guest: socket.socket) -> None:
        with guest, suppress(OSError, EOFError):
            layout = self._layout
            file = os.memfd_create("codetr-batches", os.MFD_CLOEXEC)
            try:
                os.posix_fallocate(file, 0, layout.size)
                memory = mmap.mmap(file, layout.size)
                text = json.dumps(asdict(layout)).encode()
                socket.send_fds(guest, [_COUNT.pack(len(text))], [file])
                guest.sendall(text)
            finally:
                os.close(file)
            inputs, outputs = layout.place(memory)
            adopted = self._engine.adopt(inputs, outputs)

            def run(batch: int) -> None:
                with self._busy.run():
                    adopted(batch)

            try:
                while True:
                    (batch,) = _COUNT.unpack(_receive(guest, _COUNT.size))
                    guest.sendall(_answer(run, batch, layout.max_batch_size))
            finally:
                self._engine.release(inputs, outputs)


def _answer(run: Callable[[int], None], batch: int, max_batch_size: int) -> bytes:
    """Return the length of what went wrong, 0 if nothing, and the text."""
    try:
        if not 0 < batch <= max_batch_size:
            raise ValueError(f"expected 1 to {max_batch_size} images, got {batch}")
        run(batch)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".encode()[:_TEXT_LIMIT]
        return _COUNT.pack(len(text)) + text
    return _COUNT.pack(0)


class EngineGuest:
    """The engine of another process of the same server, called as one of this process.

    Args:
        path: see `socket_path`.
        seconds: how long to wait for it to be loaded.
    """

    def __init__(self, path: Path, seconds: float = LOAD_SECONDS) -> None:
        self._path, self._seconds = path, seconds
        self._host: socket.socket | None = None
        self._inode = 0
        self._inputs: list[Array] = []
        self._outputs: list[Array] = []

    def buffers(self, batch: int) -> list[Array]:
        """Return the memory in which the engine reads the inputs of a batch.

        Raises:
            EngineGoneError: there is no engine, and none comes.
        """
        self._connect()
        return [array[:batch] for array in self._inputs]

    def __call__(self, *inputs: Array) -> list[Array]:
        """Return boxes, scores and labels of images uint8 [B, H, W, 3] with valid sizes int32 [B, 2].

        Raises:
            EngineGoneError: the engine failed, says why, or its process has ended.
        """
        batch = len(inputs[0])
        for buffer, array in zip(self.buffers(batch), inputs, strict=True):
            if buffer.ctypes.data != array.ctypes.data:
                np.copyto(buffer, array)
        host = self._host
        assert host is not None
        try:
            host.sendall(_COUNT.pack(batch))
            (length,) = _COUNT.unpack(_receive(host, _COUNT.size))
            text = _receive(host, length).decode(errors="replace")
        except (OSError, EOFError) as error:
            self.close()
            raise EngineGoneError("the process that has the engine ended while it computed") from error
        if text:
            raise EngineGoneError(f"the engine failed: {text}")
        return [array[:batch].copy() for array in self._outputs]

    def close(self) -> None:
        """Leave the engine."""
        if self._host is not None:
            self._host.close()
        self._host, self._inputs, self._outputs = None, [], []

    def _connect(self) -> None:
        """Come to the engine that was loaded last, and wait for one where there is none."""
        if self._host is not None and self._is_newest():
            return
        self.close()
        now = seen = time.monotonic()
        until = now + self._seconds
        while True:
            host = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                inode = self._path.stat().st_ino
                with _short(self._path) as name:
                    host.connect(name)
                length, files, _, _ = socket.recv_fds(host, _COUNT.size, 1)
                try:
                    layout = Layout(**json.loads(_receive(host, _COUNT.unpack(length)[0])))
                    memory = mmap.mmap(files[0], layout.size)
                finally:
                    for file in files:
                        os.close(file)
                break
            except (OSError, EOFError, struct.error, IndexError) as error:
                host.close()
                now = time.monotonic()
                seen = now if _loader_lives(self._path) else seen
                failed = _reason_path(self._path)
                if now - seen > FAILED_SECONDS and failed.exists():
                    raise EngineGoneError(failed.read_text(encoding="utf-8", errors="replace")) from error
                if now >= until or now - seen > ABSENT_SECONDS:
                    reason = f"within {self._seconds:g} s" if now >= until else "and no process that loads one"
                    raise EngineGoneError(f"no engine was there {reason}") from error
                time.sleep(0.2)
        self._host, self._inode = host, inode
        self._inputs, self._outputs = layout.place(memory)

    def _is_newest(self) -> bool:
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:  # it is being taken away, and may be of use until it is
            return True


def _reason_path(path: Path) -> Path:
    """Return where an engine that could not be loaded leaves the reason."""
    return path.with_suffix(".failed")


def _loader_path(path: Path, pid: int) -> Path:
    """Return the file by which a process says that it loads the engine of `path`."""
    return path.with_suffix(f".{pid}.loader")


def _loader_files(path: Path, pid: int) -> list[Path]:
    """Return the files in which a process says so of any engine."""
    return list(path.parent.glob(f"*.{pid}.loader"))


def _loader_lives(path: Path) -> bool:
    """Return whether a process of this one's model is alive that has the engine of `path`, loads it or may yet.

    On several GPUs the processes of all engines have one name: a process says itself which engine it loads.
    """
    stubs = stubs_of(os.getppid())
    mine = next((stub.model for stub in stubs if stub.pid == os.getpid()), "")
    ours = [stub for stub in stubs if mine and stub.model == mine and stub.status is None]
    loaders = [stub.pid for stub in ours if not is_guest(stub.instance)]
    return any(_loader_path(path, pid).exists() or not _loader_files(path, pid) for pid in loaders)


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give a name for a socket's path, which itself may be longer than the 107 bytes that an address has."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _receive(connection: socket.socket, size: int) -> bytes:
    """Return so many bytes; raises EOFError if the other side has gone."""
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            raise EOFError
        found += part
    return found


def _whole_pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE
