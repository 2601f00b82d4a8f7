"""Instances of a detector that share one engine, in processes of their own as on a server."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import CodetrError
from serving.shared_engine import BusyTime, EngineGoneError, EngineGuest, EngineHost, is_guest, join, socket_path
from serving.stubs import Stub

GuestOf = Callable[..., EngineGuest]
H, W, LARGEST = 4, 6, 3
KINDS: tuple[Any, Any] = ([((H, W, 3), "uint8"), ((2,), "int32")], [((1, 4), "float32"), ((1,), "float32")])
FAILS, ENDS = 250, 251  # first pixels


class Engine:
    """Scores an image by its first pixel and `more`; its boxes are its size."""

    def __init__(self, more: int = 0) -> None:
        self.more = more
        self.begin: Callable[[int], object] = lambda value: None
        self.released = threading.Event()

    def __call__(self, *inputs: Any) -> Any:
        raise AssertionError("only guests ask it here")

    def tensors(self) -> Any:
        return KINDS

    def adopt(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> Callable[[int], None]:
        def run(batch: int) -> None:
            images, sizes = (array[:batch] for array in inputs)
            value = int(images[0, 0, 0, 0])
            self.begin(value)
            if value == FAILS:
                raise RuntimeError("out of memory")
            if value == ENDS:
                os._exit(9)
            outputs[0][:batch] = np.tile(sizes, 2)[:, None]
            outputs[1][:batch] = images[:, 0, 0, :1] + self.more

        return run

    def release(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self.released.set()


class Own(Engine):
    """The same, which its own process asks too."""

    def __call__(self, *inputs: Any) -> Any:
        outputs = [np.zeros((len(inputs[0]), *shape), kind) for shape, kind in KINDS[1]]
        self.adopt(inputs, outputs)(len(inputs[0]))
        return outputs


def ask(guest: Any, *values: int) -> list[float]:
    """Return the scores of a batch whose images have these first pixels."""
    images = np.stack([np.full((H, W, 3), value, np.uint8) for value in values])
    sizes = np.stack([np.array([value, 2], np.int32) for value in values])
    boxes, scores = guest(images, sizes)
    np.testing.assert_array_equal(boxes[:, 0], np.tile(sizes, 2))
    return [float(score) for score in scores[:, 0]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / ("long" * 30)  # a socket's address has 107 bytes
    folder.mkdir()
    return socket_path("codetr_detector", "1", "0", folder)


@pytest.fixture
def guest_of() -> Iterator[GuestOf]:
    with ExitStack() as guests:

        def make(path: Path, seconds: float = 0) -> EngineGuest:
            guest = EngineGuest(path, seconds)
            guests.callback(guest.close)
            return guest

        yield make


@pytest.fixture
def engine(path: Path) -> Iterator[Engine]:
    engine = Engine()
    host = EngineHost(engine, LARGEST, path)
    yield engine
    host.close()
    assert not path.exists()


def _offer(path: Path, more: int, ready: Any) -> None:
    host = EngineHost(Engine(more), LARGEST, path)
    ready.set()
    threading.Event().wait()
    host.close()


def offered(path: Path, more: int = 0) -> Any:
    """Start a process that has an engine, and return it."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_offer, args=(path, more, ready), daemon=True)
    process.start()
    assert ready.wait(60)
    return process


def test_a_guest_is_answered_by_the_engine(engine: Engine, path: Path, guest_of: GuestOf) -> None:
    guest = guest_of(path)
    assert ask(guest, 7) == [7]
    assert ask(guest, 1, 2, 3) == [1, 2, 3]
    outputs = guest(np.zeros((1, H, W, 3), np.uint8), np.ones((1, 2), np.int32))
    ask(guest, 9)
    assert outputs[1][0, 0] == 0, "a batch's outputs are its own"


def test_what_lies_in_the_shared_memory_is_not_copied(
    engine: Engine, path: Path, monkeypatch: pytest.MonkeyPatch, guest_of: GuestOf
) -> None:
    guest = guest_of(path)
    images, sizes = guest.buffers(2)
    images[...], sizes[...] = 5, 2
    monkeypatch.setattr(np, "copyto", lambda *arrays: pytest.fail("copied"))
    assert guest(images, sizes)[1].tolist() == [[5], [5]]


def test_one_guests_batch_is_handed_over_while_anothers_is_computed(
    engine: Engine, path: Path, guest_of: GuestOf
) -> None:
    both = threading.Barrier(2, timeout=60)
    engine.begin = lambda value: both.wait()
    guests = [guest_of(path) for _ in range(2)]
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(ask, guests, (7, 8), timeout=60)) == [[7], [8]]


def test_guests_have_memory_of_their_own(engine: Engine, path: Path, guest_of: GuestOf) -> None:
    first, second = (guest_of(path) for _ in range(2))
    first.buffers(1)[0][...] = 7
    second.buffers(1)[0][...] = 8
    assert first(first.buffers(1)[0], np.ones((1, 2), np.int32))[1].tolist() == [[7]]


def test_an_engine_that_fails_is_told_and_goes_on(engine: Engine, path: Path, guest_of: GuestOf) -> None:
    guest = guest_of(path)
    with pytest.raises(EngineGoneError, match=r"^the engine failed: RuntimeError: out of memory$"):
        ask(guest, FAILS)
    assert ask(guest, 7) == [7]


@pytest.mark.parametrize("batch", [0, LARGEST + 1])
def test_a_batch_that_the_memory_does_not_hold_is_refused(
    engine: Engine, path: Path, batch: int, guest_of: GuestOf
) -> None:
    guest = guest_of(path)
    inputs = [np.resize(array, (batch, *array.shape[1:])) for array in guest.buffers(1)]
    guest.buffers = lambda batch: inputs  # type: ignore[method-assign]
    with pytest.raises(EngineGoneError, match=f"ValueError: expected 1 to {LARGEST} images, got {batch}"):
        guest(*inputs)


def test_memory_is_released_when_a_guest_leaves(engine: Engine, path: Path, guest_of: GuestOf) -> None:
    guest = guest_of(path)
    assert ask(guest, 7) == [7]
    guest.close()
    assert engine.released.wait(60)


def test_who_asks_an_engine_whose_process_ends_is_told_at_once_and_finds_the_next(
    path: Path, guest_of: GuestOf
) -> None:
    process = offered(path)
    guest = guest_of(path)
    assert ask(guest, 7) == [7]
    with pytest.raises(EngineGoneError, match="the process that has the engine ended while it computed"):
        ask(guest, ENDS)
    process.join(60)
    assert process.exitcode == 9
    with pytest.raises(EngineGoneError, match="no engine was there within 0 s"):
        ask(guest, 7)
    other = offered(path, more=100)
    assert ask(guest, 7) == [107]
    other.kill()


def test_an_engine_that_is_loaded_anew_gets_the_guests_of_the_old_one(
    engine: Engine, path: Path, guest_of: GuestOf
) -> None:
    guest = guest_of(path)
    assert ask(guest, 7) == [7]
    newer = EngineHost(Engine(more=100), LARGEST, path)
    assert ask(guest, 7) == [107]
    newer.close()
    assert ask(guest, 7) == [107], "while it is there"
    newest = EngineHost(Engine(more=100), LARGEST, path)
    assert ask(guest, 8) == [108]
    newest.close()


def test_a_guest_waits_for_the_engine(path: Path, guest_of: GuestOf) -> None:
    guest = guest_of(path, seconds=60)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(ask, guest, 7)
        host = EngineHost(Engine(), LARGEST, path)
        assert answer.result(60) == [7]
    host.close()


@pytest.mark.parametrize("status", [None, -9])
def test_a_guest_waits_no_longer_than_somebody_loads_the_engine(
    path: Path, guest_of: GuestOf, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    """Triton tells that one instance has failed when all have an answer."""
    engine = Stub(1, "a_detector" if status is None else "", status, "a_detector_0_0")
    mine = Stub(os.getpid(), "a_detector", None, "a_detector_guest_0")
    other = Stub(2, "a_detector", None, "a_detector_guest_1")
    monkeypatch.setattr("serving.shared_engine.stubs_of", lambda server: [engine, mine, other])
    monkeypatch.setattr("serving.shared_engine.ABSENT_SECONDS", 0.0 if status else 0.2)
    with pytest.raises(EngineGoneError, match="process that loads one" if status else "within 1 s"):
        ask(guest_of(path, seconds=60 if status else 1), 7)


def test_a_guest_waits_for_the_engine_of_its_own_gpu_alone(
    tmp_path: Path, guest_of: GuestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several GPUs each engine's process has the same name."""
    first, second = (socket_path("a_detector", "1", device, tmp_path) for device in "01")
    engines = [Stub(pid, "a_detector", None, "a_detector_0_0") for pid in (1, 2)]
    mine = Stub(os.getpid(), "a_detector", None, "a_detector_guest_0")
    alive = [mine]
    monkeypatch.setattr("serving.shared_engine.stubs_of", lambda server: alive)
    monkeypatch.setattr("serving.shared_engine.ABSENT_SECONDS", 0.3)
    second.with_suffix(".2.loader").touch()
    alive += engines[1:]
    with pytest.raises(EngineGoneError, match="process that loads one"):
        ask(guest_of(first, seconds=60), 7)
    with pytest.raises(EngineGoneError, match="within 1 s"):
        ask(guest_of(second, seconds=1), 7)
    alive += engines[:1]
    with pytest.raises(EngineGoneError, match="within 1 s"):  # process 1 has not said yet which one it loads
        ask(guest_of(first, seconds=1), 7)


def test_each_gpu_has_an_engine_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = ("a_detector_0", "a_detector_guest")
    ends = []
    for device, more in (("0", 100), ("1", 200)):
        args = instance(tmp_path, monkeypatch, "a_detector_0_0", *groups) | {"model_instance_device_id": device}
        ends.append(join(args, partial(Engine, more))[1])
        loaders = [each.name for each in tmp_path.glob("*.loader")]
        assert loaders == [f"a_detector-1-{device}.{os.getpid()}.loader"], "a process says the last that it loads"
    for device, answer in (("0", 107), ("1", 207)):
        args = instance(tmp_path, monkeypatch, "a_detector_guest_0", *groups) | {"model_instance_device_id": device}
        guest, part = join(args, lambda: pytest.fail("loaded"))
        assert isinstance(guest, EngineGuest)
        assert ask(guest, 7) == [answer]
        ends.append(part)
    for end in reversed(ends):
        end()


def test_a_guest_tells_why_the_engine_could_not_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise RuntimeError("out of memory")

    groups = ("a_detector_0", "a_detector_guest")
    with pytest.raises(RuntimeError, match="out of memory"):
        join(instance(tmp_path, monkeypatch, "a_detector_0_0", *groups), fail)
    monkeypatch.setattr("serving.shared_engine.FAILED_SECONDS", 0.0)
    guest = instance(tmp_path, monkeypatch, "a_detector_guest_0", *groups)
    with pytest.raises(EngineGoneError, match=r"^RuntimeError: out of memory$"):
        join(guest, fail)
    _, leave = join(instance(tmp_path, monkeypatch, "a_detector_0_0", *groups), Engine)
    _, part = join(guest, fail)
    part()
    leave()


def test_the_engine_is_offered_to_nobody_else(engine: Engine, path: Path) -> None:
    assert path.stat().st_mode & 0o077 == 0


def test_without_a_private_folder_it_is_this_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    path = socket_path("codetr_detector", "2", "1")
    assert path == tmp_path / f"codetr-{os.getuid()}-{os.getppid()}" / "codetr_detector-2-1.engine"
    assert path == socket_path("codetr_detector", "2", "1"), "the next instance has the same"
    path.parent.chmod(0o755)
    with pytest.raises(CodetrError, match=r"is not a folder of this user's alone; remove it"):
        socket_path("codetr_detector", "2", "1")
    path.parent.rmdir()
    path.parent.symlink_to("/tmp")
    with pytest.raises(CodetrError, match="alone"):
        socket_path("codetr_detector", "2", "1")


@pytest.mark.parametrize(
    ("name", "guest"),
    [
        ("codetr_detector_0_0", False),
        ("codetr_detector_guest_0", True),
        ("my_guest_detector_0_1", False),
        ("my_detector_guest.2_detector_guest_1", True),
    ],
)
def test_a_guest_is_told_by_its_name(name: str, guest: bool) -> None:
    assert is_guest(name) is guest


def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *groups: str) -> dict[str, str]:
    monkeypatch.setattr("serving.shared_engine.private_folder", lambda: tmp_path)
    config = {"name": "a_detector", "max_batch_size": LARGEST, "instance_group": [{"name": each} for each in groups]}
    return {
        "model_config": json.dumps(config),
        "model_version": "1",
        "model_instance_name": name,
        "model_instance_device_id": "0",
    }


def test_the_first_instance_loads_the_engine_and_the_others_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = ("a_detector_0", "a_detector_guest")
    engine = Own()
    found, leave = join(instance(tmp_path, monkeypatch, "a_detector_0_0", *groups), lambda: engine)
    guest, part = join(instance(tmp_path, monkeypatch, "a_detector_guest_0", *groups), lambda: pytest.fail("loaded"))
    assert isinstance(guest, EngineGuest)
    assert ask(guest, 7) == [7]
    assert ask(found, 3) == [3]
    part()
    assert engine.released.wait(60)
    leave()
    assert list(tmp_path.iterdir()) == []


class Clock:
    """In the place of `time.perf_counter`: each call is told the next time."""

    def __init__(self, *times: float) -> None:
        self.times = list(times)

    def perf_counter(self) -> float:
        """Return it."""
        return self.times.pop(0)


def test_time_in_which_two_instances_have_the_engine_computing_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[tuple[str, float]] = []
    busy = BusyTime(lambda family, value: noted.append((family.name, value)))
    # Two from 10 and 12 on, which end at 15 and 21; one from 30 to 34.
    monkeypatch.setattr("serving.shared_engine.time", Clock(10, 12, 15, 21, 30, 34))
    first, second, third = busy.run(), busy.run(), busy.run()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    with third:
        pass
    assert noted == [("codetr_engine_busy_seconds_total", each) for each in (5, 6, 4)]


def test_the_time_of_guests_and_of_the_engines_own_process_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = ("a_detector_0", "a_detector_guest")
    noted: list[float] = []
    where = instance(tmp_path, monkeypatch, "a_detector_0_0", *groups)
    found, leave = join(where, Own, lambda family, value: noted.append(value))
    guest, part = join(instance(tmp_path, monkeypatch, "a_detector_guest_0", *groups), Engine)
    for asked, so_far in ((found, 1), (guest, 2), (guest, 3)):
        ask(asked, 3)
        assert len(noted) == so_far
    assert all(0 <= each < 60 for each in noted)
    part()
    leave()


def test_an_engine_without_guests_is_offered_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    found, leave = join(instance(tmp_path, monkeypatch, "a_detector_0_0", "a_detector_0"), lambda: engine)
    assert found is engine
    assert list(tmp_path.iterdir()) == []
    leave()
