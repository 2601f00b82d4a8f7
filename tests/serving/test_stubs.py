from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from serving.stubs import LoadingStubs, Stub, stubs_of

# A server that notices nothing: it starts steps as Triton does, and never asks what became of them.
SERVER = (
    "import subprocess, sys, time\n"
    "for model in sys.argv[1:]:\n"
    "    step = [sys.executable, '-c', 'import time; time.sleep(600)', f'/r/{model}/1/model.py', f'{model}_0_0']\n"
    "    subprocess.Popen([*step, 'DEFAULT'])\n"
    "time.sleep(600)"
)


@pytest.fixture
def server() -> Iterator[int]:
    """Its process id, when its steps a_2 and b run."""
    with subprocess.Popen([sys.executable, "-c", SERVER, "a_2", "b"]) as process:
        try:
            wait_for(lambda: {stub.model for stub in stubs_of(process.pid)} == {"a_2", "b"})
            yield process.pid
        finally:
            for stub in stubs_of(process.pid):
                if stub.status is None:
                    os.kill(stub.pid, 9)
            process.kill()


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill(server: int, model: str) -> None:
    (pid,) = (stub.pid for stub in stubs_of(server) if stub.model == model)
    os.kill(pid, 9)
    wait_for(lambda: any(stub.pid == pid and stub.status is not None for stub in stubs_of(server)))


def test_steps_are_seen_with_their_models_and_dead_ones_with_their_status(server: int) -> None:
    kill(server, "b")
    assert {(stub.model, stub.status) for stub in stubs_of(server)} == {("a_2", None), ("", -9)}


def test_a_step_counts_as_dead_when_nobody_has_taken_it_away(server: int) -> None:
    stubs = LoadingStubs(server)
    assert stubs.died([]) is None
    kill(server, "b")
    assert stubs.died([]) is None, "not at the first look at it"
    assert stubs.died([]) == ("b", -9)
    assert not stubs.all_gone
    assert stubs_of(2**22 + 1) == []  # a process id that no process has


@pytest.mark.parametrize(
    ("begun", "name"),
    [
        pytest.param([], "a Python step", id="nothing is known"),
        pytest.param(["a_0_0", "a_0_1"], "a", id="one model"),
        pytest.param(["a_2_0_0", "b_0_0"], "a_2 or b", id="one of two"),
        pytest.param(["c_0_1"], "c", id="another instance of one that lives"),
        pytest.param(["a_detector_0_0", "a_detector_guest_1"], "a_detector", id="one that shares another's engine"),
    ],
)
def test_a_step_that_died_before_anybody_looked_is_named_by_what_was_begun(
    begun: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, dead = Stub(1, "c", None), Stub(2, "", -9)
    monkeypatch.setattr("serving.stubs.stubs_of", lambda server: [alive, dead])
    stubs = LoadingStubs(7)
    assert stubs.died([*begun, "c_0_0"]) is None
    assert stubs.died([*begun, "c_0_0"]) == (name, -9)


def test_how_a_step_ended_is_known_when_the_server_has_taken_it_away(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [
        [Stub(1, "a", None), Stub(2, "b", None), Stub(3, "c", None)],
        [Stub(1, "", -9), Stub(2, "", 0), Stub(3, "c", None), Stub(4, "", 3)],
        [Stub(3, "c", None)],
    ]
    monkeypatch.setattr("serving.stubs.stubs_of", lambda server: looks.pop(0))
    stubs = LoadingStubs(7)
    assert stubs.statuses(["a_0_0"]) == {}
    for _ in range(3):
        stubs.look()
    assert stubs.statuses(["a_0_0", "b_0_0", "c_0_0"]) == {"a": -9}
    assert stubs.statuses(["c_0_0", "c_0_1", "d_0_0"]) == {"a": -9, "c": 3, "d": 3}, "one of those nobody saw alive"


def test_a_step_that_is_ending_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments are gone before it is dead, and it has none before it begins."""
    looks = [[Stub(1, "", None)], [Stub(1, "m", None)], [Stub(1, "", None)], [Stub(1, "", -9)]]
    monkeypatch.setattr("serving.stubs.stubs_of", lambda server: looks.pop(0))
    loading = LoadingStubs(0)
    while looks:
        loading.look()
    assert loading.statuses([]) == {"m": -9}
