from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from serving.stubs import LoadingStubs, Stub, stubs_of

# A server that notices nothing: it starts steps as Triton does, and never asks what became of them.
STEP = "import os, time; time.sleep({}); os.kill(os.getpid(), {})"
SERVER = (
    "import subprocess, sys, time\n"
    "for model, code in zip(sys.argv[1::2], sys.argv[2::2]):\n"
    "    subprocess.Popen([sys.executable, '-c', code, f'/r/{model}/1/model.py', f'{model}_0_0', 'DEFAULT'])\n"
    "time.sleep(60)"
)


@pytest.fixture
def server() -> Iterator[int]:
    words = ["a_2", STEP.format(60, 15), "b", STEP.format(0.7, 9)]
    with subprocess.Popen([sys.executable, "-c", SERVER, *words]) as process:
        yield process.pid
        for stub in stubs_of(process.pid):
            if stub.status is None:
                os.kill(stub.pid, 9)
        process.kill()


def test_steps_are_seen_with_their_models_and_dead_ones_with_their_status(server: int) -> None:
    deadline = time.monotonic() + 30
    while not (dead := [stub for stub in stubs_of(server) if stub.status is not None]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [stub.status for stub in dead] == [-9]
    assert [(stub.model, stub.status) for stub in stubs_of(server) if stub not in dead] == [("a_2", None)]


def test_a_step_counts_as_dead_when_nobody_has_taken_it_away(server: int) -> None:
    stubs = LoadingStubs(server)
    deadline = time.monotonic() + 30
    seen_dead = 0
    while (died := stubs.died([])) is None:
        assert time.monotonic() < deadline
        seen_dead += any(stub.status is not None for stub in stubs_of(server))
        time.sleep(0.1)
    assert seen_dead >= 1  # not at the first look at it
    assert died == ("b", -9)
    assert not stubs.all_gone
    assert stubs_of(2**22 + 1) == []  # a process id that no process has


@pytest.mark.parametrize(
    ("begun", "name"),
    [
        pytest.param([], "a Python step", id="nothing is known"),
        pytest.param(["a_0_0", "a_0_1"], "a", id="one model"),
        pytest.param(["a_2_0_0", "b_0_0"], "a_2 or b", id="one of two"),
        pytest.param(["c_0_1"], "c", id="another instance of one that lives"),
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
