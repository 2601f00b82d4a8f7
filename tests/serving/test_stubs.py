from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from serving.stubs import LoadingStubs, Stub, stubs_of

# A server that notices nothing: it starts what it is told, and never asks what became of it.
SERVER = "import subprocess, sys, time; [subprocess.Popen(['bash', '-c', c]) for c in sys.argv[1:]]; time.sleep(60)"


@pytest.fixture
def server() -> Iterator[int]:
    commands = ["exec sleep 60.5", "exec sleep 0.5", "sleep 0.5; kill -9 $$"]
    with subprocess.Popen([sys.executable, "-c", SERVER, *commands]) as process:
        yield process.pid
        for stub in stubs_of(process.pid):
            if stub.status is None:
                subprocess.run(["kill", str(stub.pid)], check=True)
        process.kill()


def test_dead_steps_are_seen_with_their_status(server: int) -> None:
    deadline = time.monotonic() + 30
    while len([stub for stub in stubs_of(server) if stub.status is not None]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    alive, *dead = sorted(stubs_of(server), key=lambda stub: stub.status is not None)
    assert (alive.instance, alive.status) == ("60.5", None)
    assert {stub.status for stub in dead} == {-9, 0}


def test_a_step_counts_as_dead_when_nobody_has_taken_it_away(server: int) -> None:
    stubs = LoadingStubs(server)
    deadline = time.monotonic() + 30
    looks = 0
    while (died := stubs.died([])) is None:
        assert time.monotonic() < deadline
        looks += 1
        time.sleep(0.1)
    assert looks >= 2  # none at the first look at it
    assert died[0] in ("0.5", "$$")
    assert died[1] in (0, -9)
    assert stubs_of(2**22 + 1) == []  # a process id that no process has


@pytest.mark.parametrize(
    ("begun", "name"),
    [
        pytest.param([], "a Python step", id="nothing is known"),
        pytest.param(["a_0_0", "a_0_1"], "a", id="one model"),
        pytest.param(["a_2_0_0", "b_0_0"], "a_2 or b", id="one of two"),
    ],
)
def test_a_step_that_died_before_anybody_looked_is_named_by_what_was_begun(
    begun: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, dead = Stub(1, "c_0_0", None), Stub(2, "", -9)
    monkeypatch.setattr("serving.stubs.stubs_of", lambda server: [alive, dead])
    stubs = LoadingStubs(7)
    assert stubs.died([*begun, "c_0_0"]) is None
    assert stubs.died([*begun, "c_0_0"]) == (name, -9)
