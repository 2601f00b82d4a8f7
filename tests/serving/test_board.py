from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving import board
from serving.board import Board, DetectorQueue, is_alive
from serving.errors import ServerBusyError

SECOND = 1_000_000_000


class Clock:
    """The machine's monotonic clock, set by hand."""

    def __init__(self) -> None:
        self.now = 1000 * SECOND

    def monotonic_ns(self) -> int:
        return self.now

    def goes_on(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(board, "time", clock)
    return clock


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> DetectorQueue:
    """A queue as pre-processing sees it, of a detector that takes a second an image and idles."""
    detector = DetectorQueue(tmp_path, "a")
    detector.open()
    began = detector.begin(1)
    clock.goes_on(1)
    detector.end(began, 0, 1)
    return DetectorQueue(tmp_path, "a")


def let_in(queue: DetectorQueue, images: int = 1, left: float | None = None) -> None:
    queue.hand_on(queue.admit(images, 8, 5.0, left))


def test_a_step_says_how_long_it_has_been_at_work(tmp_path: Path, clock: Clock) -> None:
    row = Board(tmp_path).row()
    reader = Board(tmp_path)
    began = row.begin()
    clock.goes_on(2)
    assert reader.work()[os.getpid()].present == 2
    row.end(began)
    clock.goes_on(7)
    work = reader.work()[os.getpid()]
    assert (work.present, work.longest) == (None, 2)


def test_the_row_of_a_process_that_has_ended_is_given_to_another(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        Board(tmp_path)._rows[0] = (process.pid, 1, 1)
        assert list(Board(tmp_path).work()) == [process.pid]
        process.kill()
        while is_alive(process.pid):  # a zombie, until the block ends
            pass
        assert Board(tmp_path).work() == {}
        Board(tmp_path).row()
    assert Board(tmp_path)._rows[:2, 0].tolist() == [os.getpid(), 0]


def test_a_detector_that_keeps_no_account_is_not_waited_for(tmp_path: Path, clock: Clock) -> None:
    queue = DetectorQueue(tmp_path, "plan")
    assert [queue.admit(1, 1, 1.0) for _ in range(9)] == [None] * 9
    queue.hand_on(None)
    queue.withdraw(None)
    assert queue.waiting() == 0


def test_a_full_queue_refuses_at_once(queue: DetectorQueue) -> None:
    let_in(queue, 8)
    with pytest.raises(ServerBusyError, match="the queue is full: 8 images wait for the detector, of 8"):
        let_in(queue)


def test_a_request_larger_than_the_queue_is_let_in_alone(queue: DetectorQueue) -> None:
    let_in(queue, 9)
    assert queue.waiting() == 9


def test_what_would_wait_too_long_is_refused(queue: DetectorQueue) -> None:
    for _ in range(6):
        let_in(queue)
    with pytest.raises(ServerBusyError, match=r"6 images wait for the detector, which takes 6\.0 s for them, of 5 s"):
        let_in(queue)


def test_the_time_of_two_images_may_always_be_waited_for(queue: DetectorQueue) -> None:
    for _ in range(3):
        queue.hand_on(queue.admit(1, 8, 0.1))
    with pytest.raises(ServerBusyError, match="of 2 s"):
        queue.admit(1, 8, 0.1)


def test_what_would_be_answered_after_its_deadline_is_refused(queue: DetectorQueue) -> None:
    let_in(queue, left=0.4)  # nothing waits: it may be quicker than the last one
    with pytest.raises(ServerBusyError, match=r"too long for the deadline: 1 images .* and 0\.4 s are left"):
        let_in(queue, left=0.4)
    let_in(queue, left=2.1)


def test_what_is_answered_or_refused_makes_room(queue: DetectorQueue, tmp_path: Path, clock: Clock) -> None:
    let_in(queue, 4)
    let_in(queue, 2)
    queue.withdraw(queue.admit(2, 8, 9.0))
    detector = DetectorQueue(tmp_path, "a")
    began = detector.begin(1)
    clock.goes_on(1)
    detector.end(began, 1, 4)
    assert queue.waiting() == 2, "of the oldest request"


def test_requests_in_pre_processing_are_not_taken_for_answered(
    queue: DetectorQueue, tmp_path: Path, clock: Clock
) -> None:
    queue.admit(3, 8, 9.0)
    detector = DetectorQueue(tmp_path, "a")
    detector.end(detector.begin(2), 2, 2)
    clock.goes_on(1)
    assert queue.waiting() == 3


def test_what_was_lost_on_the_way_is_forgotten(queue: DetectorQueue, tmp_path: Path, clock: Clock) -> None:
    """A request cancelled between two steps never reaches the detector."""
    let_in(queue, 3)
    clock.goes_on(0.4)
    assert queue.waiting() == 3
    began = DetectorQueue(tmp_path, "a").begin(1)
    clock.goes_on(4)
    assert queue.waiting() == 3, "it may be waiting behind what runs"
    clock.goes_on(30)
    assert queue.waiting() == 0, "too late for any answer"
    DetectorQueue(tmp_path, "a").end(began, 0, 1)
    let_in(queue, 3)
    clock.goes_on(0.6)
    assert queue.waiting() == 0, "an idle detector takes what it is handed"


def test_a_detector_that_is_loaded_anew_begins_anew(queue: DetectorQueue, tmp_path: Path) -> None:
    let_in(queue, 3)
    DetectorQueue(tmp_path, "a").begin(1)
    DetectorQueue(tmp_path, "a").open()
    assert queue.waiting() == 0


def test_engines_have_queues_of_their_own(queue: DetectorQueue, tmp_path: Path) -> None:
    let_in(queue, 3)
    assert DetectorQueue(tmp_path, "b").waiting() == 0


def test_triton_knows_which_requests_are_lost(queue: DetectorQueue, tmp_path: Path, clock: Clock) -> None:
    for images in (2, 1, 1, 1):
        let_in(queue, images)
        clock.goes_on(0.01)
    DetectorQueue(tmp_path, "a").begin(1)
    queue.correct(2)
    assert queue.waiting() == 3, "the oldest is none of the one that runs and the two that wait"
    queue.correct(5)
    assert queue.waiting() == 3


@pytest.fixture
def instances(tmp_path: Path, queue: DetectorQueue) -> list[DetectorQueue]:
    """Two of the queue's detector, as of processes of their own."""
    first, second = (DetectorQueue(tmp_path, "a") for _ in range(2))
    first.open()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.getpid", os.getppid)
        second.open()
    return [first, second]


def test_what_either_instance_computes_is_not_lost(
    queue: DetectorQueue, instances: list[DetectorQueue], clock: Clock
) -> None:
    first, second = instances
    for _ in range(5):
        let_in(queue)
        clock.goes_on(0.01)
    began = [first.begin(2), second.begin(2)]
    queue.correct(1)
    assert queue.waiting() == 5, "one waits, and each computes two"
    first.end(began[0], 2, 2)
    queue.correct(1)
    assert queue.waiting() == 3
    clock.goes_on(0.6)
    assert queue.waiting() == 3, "the other one still computes"
    second.end(began[1], 2, 2)
    clock.goes_on(0.6)
    assert queue.waiting() == 0, "both idle, and would have taken it"


def test_an_instance_that_died_computes_nothing(queue: DetectorQueue, tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", _DIES_AT_WORK, str(tmp_path)], stdout=subprocess.PIPE, check=True, text=True
    )
    assert dead.stdout == "at work\n"
    let_in(queue)
    queue.correct(0)
    assert queue.waiting() == 1, "nobody knows yet that it died"
    DetectorQueue(tmp_path, "a").open()
    let_in(queue)
    queue.correct(0)
    assert queue.waiting() == 0


# Begins a run and ends in it.
_DIES_AT_WORK = """
import sys
from pathlib import Path
from serving.board import DetectorQueue
queue = DetectorQueue(Path(sys.argv[1]), "a")
queue.open()
queue.begin(1)
print("at work")
"""

# Hands on and takes back, as pre-processing does, until it is ended.
_HANDING_ON = """
import sys
from pathlib import Path
from serving.board import DetectorQueue
queue = DetectorQueue(Path(sys.argv[1]), "a")
print("ready", flush=True)
while True:
    for place in range(0, 1024, 3):
        queue.hand_on(place)
    for place in range(0, 1024, 3):
        queue.withdraw(place)
"""


def test_others_may_hand_on_while_a_run_ends(tmp_path: Path) -> None:
    detector = DetectorQueue(tmp_path, "a")
    detector.open()
    with subprocess.Popen([sys.executable, "-c", _HANDING_ON, str(tmp_path)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"ready\n"
            for _ in range(3000):
                detector.end(detector.begin(0), 0, 1)
                detector.longest_wait()
        finally:
            other.kill()
