from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codetr_client.contract import DEADLINE_PARAMETER, DEADLINE_PASSED
from serving import admission, board
from serving.admission import Door, at_work, drain, seconds_left, too_late
from serving.board import Board, DetectorQueue
from serving.errors import ServerBusyError


def deadline(seconds: float) -> dict[str, Any]:
    return {DEADLINE_PARAMETER: int((time.time() + seconds) * 1000)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The private folder of a server whose step this process is, on a board whose clock stands still."""
    monkeypatch.setenv("CODETR_RUN", str(tmp_path))
    monkeypatch.setattr(board, "time", SimpleNamespace(monotonic_ns=lambda: 10**15))
    monkeypatch.setattr(admission, "_board", lambda: Board(tmp_path))
    monkeypatch.setattr(admission, "_row", Board(tmp_path).row)
    return tmp_path


def request(cancelled: bool = False, text: str = "") -> Any:
    return SimpleNamespace(is_cancelled=lambda: cancelled, parameters=lambda: text)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(request, None, id="no deadline"),
        pytest.param(lambda: request(text='{"score_threshold": 0.5}'), None, id="another parameter"),
        pytest.param(lambda: request(text=json.dumps(deadline(60))), None, id="in a minute"),
        pytest.param(lambda: request(text=json.dumps(deadline(-2))), DEADLINE_PASSED, id="over"),
        pytest.param(lambda: request(cancelled=True), "cancelled", id="cancelled"),
        pytest.param(lambda: request(text=f'["{DEADLINE_PARAMETER}"'), None, id="no JSON"),
        pytest.param(lambda: request(text=f'["{DEADLINE_PARAMETER}"]'), None, id="no mapping"),
    ],
)
def test_what_nobody_waits_for_is_too_late(given: Callable[[], Any], expected: str | None) -> None:
    refusal = too_late(given())
    assert (refusal is None) == (expected is None)
    assert (expected or "None") in str(refusal)


def test_triton_is_asked_for_cancelled_requests_only_where_one_has_waited(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = admission.Account(DetectorQueue(folder, "other"))
    with Door("other_preprocess", 4, 10.0).let_in(1, {}):
        pass
    assert account.is_slow, "Triton may have kept requests of a step that crashed"
    monkeypatch.setattr(admission, "_START_SECONDS", -1)
    assert not account.is_slow
    account = admission.Account(DetectorQueue(folder, "other"))
    assert account.is_slow, "a request that did not come through pre-processing may have waited for long"
    with Door("other_preprocess", 4, 10.0).let_in(1, {}):
        pass
    assert not account.is_slow
    assert too_late(request(cancelled=True), account.is_slow) is None
    monkeypatch.setattr(board, "time", SimpleNamespace(monotonic_ns=lambda: 10**15 + 2 * 10**8))
    assert account.is_slow, "after a fifth of a second"
    assert admission.Account(None).is_slow


@pytest.mark.parametrize("value", [True, "soon", None])
def test_a_deadline_that_is_no_number_is_none(value: Any) -> None:
    assert seconds_left({DEADLINE_PARAMETER: value}) is None


def test_the_door_counts_what_it_hands_on(folder: Path) -> None:
    DetectorQueue(folder, "other").open()
    door = Door("other_preprocess", 4, 10.0)
    with door.let_in(2, {}):
        pass
    with pytest.raises(RuntimeError), door.let_in(1, {}):
        raise RuntimeError("a damaged image")
    assert DetectorQueue(folder, "other").waiting() == 2
    with pytest.raises(ServerBusyError, match="full"), door.let_in(3, {}):
        pytest.fail("let in")


def test_the_door_refuses_what_is_too_late_and_everything_at_the_end(folder: Path) -> None:
    door = Door("codetr_preprocess", 4, 10.0)
    with pytest.raises(ServerBusyError, match=DEADLINE_PASSED), door.let_in(1, deadline(-1)):
        pytest.fail("let in")
    with door.let_in(1, deadline(60)):
        pass
    Board(folder).close()
    with pytest.raises(ServerBusyError, match="the server is ending"), door.let_in(1, {}):
        pytest.fail("let in")


def test_without_a_private_folder_everything_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODETR_RUN", raising=False)
    door = Door("codetr_preprocess", 1, 0.1)
    for _ in range(3):
        with door.let_in(5, {}), at_work():
            pass


def test_a_drain_waits_for_what_is_at_work_and_on_its_way(folder: Path) -> None:
    queue = DetectorQueue(folder, "codetr")
    queue.open()
    place = queue.admit(1, 4, 10.0)
    worked, ends = threading.Event(), threading.Event()

    def work() -> None:
        with at_work():
            worked.set()
            ends.wait()

    thread = threading.Thread(target=work)
    thread.start()
    worked.wait()
    assert not drain(folder, 0.6, lambda: True), "a step is at work"
    ends.set()
    thread.join()
    assert not drain(folder, 0.6, lambda: True), "an image is on its way"
    queue.withdraw(place)
    assert not drain(folder, 60, lambda: False), "nobody wants to wait"
    assert drain(folder, 60, lambda: True)
    assert Board(folder).is_closed


def test_a_drain_on_a_machine_that_stands_still_for_a_moment_waits_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count()  # each of them half a second after the one before
    clock = SimpleNamespace(monotonic=lambda: next(looks) / 2, sleep=lambda seconds: None)
    monkeypatch.setattr(admission, "time", clock)
    with at_work():
        assert not drain(folder, 60, lambda: True)
    assert drain(folder, 60, lambda: True)


def test_before_anybody_is_refused_triton_is_asked_what_waits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    waiting = iter([0, 0, 3])
    monkeypatch.setattr(admission, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    monkeypatch.setattr(admission, "pending_requests", lambda folder, model: asked.append(model) or next(waiting))
    queue = DetectorQueue(folder, "other")
    queue.open()
    queue.hand_on(queue.admit(4, 4, 10.0))
    door = Door("other_preprocess", 4, 10.0)
    with door.let_in(3, {}):
        pass
    assert asked == ["other_detector"]
    assert queue.waiting() == 3
    with door.let_in(2, {}):  # half of the places were free, so it is asked again
        pass
    assert queue.waiting() == 2
    with pytest.raises(ServerBusyError), door.let_in(3, {}):
        pytest.fail("let in: nothing of what was handed on is over")
    assert len(asked) == 3
    with pytest.raises(ServerBusyError), door.let_in(3, {}):
        pytest.fail("let in: it was asked a moment ago, and most waited")
    assert len(asked) == 3
