"""The watchdog over processes of the test's own; tests/e2e/test_faults.py has it watch a real server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving.board import Board, is_alive, process_fields
from serving.view import make_reloadable
from serving.watchdog import Watchdog

STEP = "codetr_detector"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A server's private folder with one Python model of one instance, and one of Triton's own backend."""
    for model, backend in ((STEP, "python"), ("codetr_plan", "tensorrt")):
        (tmp_path / "models" / model).mkdir(parents=True)
        config = tmp_path / "models" / model / "config.pbtxt"
        config.write_text(f'backend: "{backend}"\ninstance_group [ {{ kind: KIND_CPU count: 1 }} ]\n')
    make_reloadable(tmp_path / "models")
    return tmp_path


class Server:
    """This process as a server: its children look like Triton's steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.started: list[subprocess.Popen[bytes]] = []
        self.watchdog = Watchdog(os.getpid(), folder, folder / "models", self.said.append, standstill_seconds=60)

    def start_step(self) -> subprocess.Popen[bytes]:
        words = [str(self.folder / "models" / STEP / "1" / "model.py"), "region", f"{STEP}_0_0", "DEFAULT"]
        code = "import time; print(flush=True); time.sleep(600)"
        process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        self.started.append(process)
        return process

    @property
    def current(self) -> set[int]:
        return set(self.watchdog._models[STEP].current)

    @property
    def reloads(self) -> float:
        generation = self.folder / "models" / STEP / "generation"
        return generation.stat().st_mtime - (self.folder / "models" / "codetr_plan" / "generation").stat().st_mtime


@pytest.fixture(autouse=True)
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Whom the watchdog kills; this process lives on."""
    killed: list[int] = []
    kill = os.kill

    def kill_others(pid: int, number: int) -> None:
        killed.append(pid)
        if pid != os.getpid():
            kill(pid, number)

    # the module's own: other threads of this process kill as before
    monkeypatch.setattr("serving.watchdog.os", SimpleNamespace(**{**vars(os), "kill": kill_others}))
    return killed


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    for process in server.started:
        process.kill()
        process.communicate()


def die(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    while is_alive(process.pid):  # a zombie: nobody has asked for it
        pass


def test_a_step_that_died_is_loaded_anew_once(server: Server) -> None:
    step = server.start_step()
    server.watchdog.look(100.0)
    assert server.said == []
    die(step)
    server.watchdog.look(100.2)
    server.watchdog.look(100.4)
    assert server.said == [f"{STEP}_0_0 has died: loading {STEP} anew"]
    assert server.reloads == 1
    server.start_step()
    server.watchdog.look(102.0)
    server.watchdog.look(130.0)
    assert server.reloads == 1


def test_steps_of_a_version_are_watched_from_its_adoption_until_it_is_dropped(server: Server) -> None:
    server.watchdog.drop([STEP])
    die(server.start_step())
    server.watchdog.look(100.0)
    assert server.said == [], "a step of no version that is served"
    step = server.start_step()
    server.watchdog.adopt([STEP])
    server.watchdog.look(100.1)
    assert server.said == [], "it was there when it was adopted"
    die(step)
    server.watchdog.look(100.2)
    assert server.said == [f"{STEP}_0_0 has died: loading {STEP} anew"]


def test_a_step_whose_version_goes_is_not_loaded_anew(server: Server) -> None:
    step = server.start_step()
    server.watchdog.look(100.0)
    shutil.rmtree(server.folder / "models" / STEP)
    die(step)
    server.watchdog.look(100.2)


def test_a_server_that_loads_a_version_is_given_its_time(server: Server, killed: list[int]) -> None:
    step = server.start_step()
    server.watchdog.look(100.0)
    die(step)
    server.watchdog.server_is_loading = True
    server.watchdog.look(100.2)
    server.watchdog.look(1000.0)
    assert os.getpid() not in killed
    server.watchdog.server_is_loading = False
    server.watchdog.look(2000.0)
    assert killed[-1] == os.getpid()


def test_a_step_that_dies_again_is_given_more_time_each_time(server: Server) -> None:
    times: list[int] = []
    die(server.start_step())
    for tick in range(220):
        server.watchdog.look(100.0 + tick)
        if server.reloads > len(times):
            times.append(tick)
            step = server.start_step()
            server.watchdog.look(100.0 + tick)
            die(step)
    assert [after - before for before, after in pairwise(times)] == [5, 10, 20, 40, 60, 60]


def test_a_step_that_lived_before_it_died_is_loaded_at_once_each_time(server: Server) -> None:
    for minute in range(3):
        step = server.start_step()
        server.watchdog.look(100.0 + 5 * minute)
        die(step)
        server.watchdog.look(104.0 + 5 * minute)
    assert server.reloads == 3


def test_one_that_died_before_anybody_looked_is_missed(server: Server) -> None:
    server.watchdog.look(100.0)
    assert server.said == [f"an instance of {STEP} has died: loading {STEP} anew"]


def test_a_stopped_step_is_killed_and_loaded_anew(server: Server) -> None:
    step = server.start_step()
    server.watchdog.look(100.0)
    step.send_signal(signal.SIGSTOP)
    while process_fields(step.pid)[0] != "T":
        pass
    server.watchdog.look(100.2)
    assert server.said == [], "a moment is nothing"
    server.watchdog.look(100.4)
    assert server.said == [f"{STEP}_0_0 is stopped: loading {STEP} anew"]
    assert step.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("present", "longest", "stands_still"),
    [
        pytest.param(59, 0, False, id="not long yet"),
        pytest.param(61, 0, True, id="too long"),
        pytest.param(61, 30, False, id="it often takes long"),
        pytest.param(301, 30, True, id="ten times as long as ever"),
        pytest.param(None, 1, False, id="idle"),
    ],
)
def test_a_step_that_stands_still_is_killed_and_a_busy_one_is_not(
    server: Server, present: float | None, longest: float, stands_still: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = server.start_step()
    board = Board(server.folder)
    now = 10**15
    monkeypatch.setattr("serving.board.time", SimpleNamespace(monotonic_ns=lambda: now))
    board._rows[0] = (step.pid, 0 if present is None else now - int(present * 1e9), int(longest * 1e9))
    server.watchdog.look(100.0)
    expected = [f"{STEP}_0_0 has stood still for {present} s: loading {STEP} anew"] if stands_still else []
    assert server.said == expected
    assert (step.poll() is None) or stands_still


def test_siblings_of_one_name_live_on_whenever_they_are_seen(server: Server, killed: list[int]) -> None:
    """As on several GPUs, of which Triton gives each the same names."""
    siblings = [server.start_step(), server.start_step()]
    server.watchdog.look(100.0)
    siblings.append(server.start_step())
    for second in range(101, 200):
        server.watchdog.look(float(second))
    assert killed == []
    assert server.said == []
    assert server.current == {each.pid for each in siblings}


def test_one_of_two_siblings_that_dies_is_told_of(server: Server, killed: list[int]) -> None:
    _, second = server.start_step(), server.start_step()
    server.watchdog.look(100.0)
    die(second)
    server.watchdog.look(110.0)
    assert server.said == [f"{STEP}_0_0 has died: loading {STEP} anew"]
    assert killed == []


@pytest.mark.parametrize("at_once", [True, False], ids=["at one look", "one by one"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_load_anew_replaces_all_siblings_by_all_new_ones(
    server: Server, killed: list[int], victim: int, at_once: bool
) -> None:
    old = [server.start_step(), server.start_step()]
    server.watchdog.look(100.0)
    die(old[victim])
    server.watchdog.look(110.0)
    new = []
    for second in range(112, 115):  # one more than there was, as of one that had died before it was seen
        new.append(server.start_step())
        if not at_once:
            server.watchdog.look(float(second))
            assert server.current == {each.pid for each in new}
    for second in range(115, 142):
        server.watchdog.look(float(second))
    assert killed == [], "it may have requests"
    for second in range(142, 200):
        server.watchdog.look(float(second))
    assert set(killed) == {old[1 - victim].pid}
    assert server.current == {each.pid for each in new}
    assert server.said == [f"{STEP}_0_0 has died: loading {STEP} anew"]
    die(new[0])
    server.watchdog.look(200.0)
    assert server.said[1:] == server.said[:1], "those of a load are watched as the first"


def test_a_load_that_was_asked_for_twice_may_come_twice(server: Server) -> None:
    """Triton begins the second when the first is complete, and then ends what that has started."""
    old = [server.start_step(), server.start_step()]
    server.watchdog.look(100.0)
    die(old[0])
    server.watchdog.look(110.0)
    server.watchdog.look(116.0)
    assert server.reloads == 2
    for second in (117, 119):
        new = [server.start_step(), server.start_step()]
        server.watchdog.look(float(second))
        assert server.current == {each.pid for each in new}
        for each in old:
            die(each)
        old = new
        server.watchdog.look(second + 1.0)
    assert server.reloads == 2


def test_a_process_that_was_replaced_is_ended_when_it_is_idle(
    server: Server, killed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, victim = server.start_step(), server.start_step()
    server.watchdog.look(100.0)
    die(victim)
    server.watchdog.look(110.0)
    server.start_step()
    board, now = Board(server.folder), 10**15
    monkeypatch.setattr("serving.board.time", SimpleNamespace(monotonic_ns=lambda: now))
    board._rows[0] = (old.pid, now - 10**9, 0)
    server.watchdog.look(112.0)
    server.watchdog.look(143.0)
    assert killed == [], "it has a request"
    board._rows[0] = (old.pid, 0, 10**9)
    server.watchdog.look(144.0)
    assert old.wait(60) == -signal.SIGKILL
    assert len(server.said) == 1


def test_a_process_that_was_replaced_answers_for_as_long_as_the_new_one_may_load(
    server: Server, killed: list[int]
) -> None:
    old, victim = server.start_step(), server.start_step()
    server.watchdog = Watchdog(os.getpid(), server.folder, server.folder / "models", server.said.append, 60.0)
    die(victim)
    server.watchdog.look(110.0)
    server.start_step()
    server.watchdog.look(112.0)
    server.watchdog.look(261.0)
    assert killed == []
    server.watchdog.look(263.0)
    assert old.wait(60) == -signal.SIGKILL


def test_what_a_model_has_left_when_it_is_adopted_again_does_not_count(server: Server) -> None:
    """As of a version that is served again while Triton still ends the processes that it had."""
    left = server.start_step()
    server.watchdog.look(100.0)
    server.watchdog.drop([STEP])
    step = server.start_step()
    server.watchdog.adopt([STEP])
    server.watchdog.look(101.0)
    assert server.current == {step.pid}
    die(left)
    server.watchdog.look(110.0)
    assert server.said == []
    die(step)
    server.watchdog.look(111.0)
    assert server.said == [f"{STEP}_0_0 has died: loading {STEP} anew"]


@pytest.mark.parametrize(
    ("groups", "missing"),
    [
        pytest.param("{ kind: KIND_GPU count: 1 }", 0, id="one, on each GPU"),
        pytest.param("{ kind: KIND_GPU count: 2 }", 1, id="two, on each GPU"),
        pytest.param("{ kind: KIND_GPU } { kind: KIND_GPU }", 1, id="groups without names have different ones"),
        pytest.param('{ name: "a" count: 1 } { name: "a" count: 1 }', 0, id="groups of one name"),
        pytest.param('{ name: "a" count: 1 } { name: "a" count: 2 }', 1, id="groups of one name, one larger"),
    ],
)
def test_an_instance_is_missed_whose_name_no_process_has(folder: Path, groups: str, missing: int) -> None:
    config = folder / "models" / STEP / "config.pbtxt"
    config.write_text(f'backend: "python" instance_group [ {groups.replace("} {", "}, {")} ]')
    server = Server(folder)
    steps = [server.start_step(), server.start_step()]
    try:
        server.watchdog.look(100.0)
    finally:
        for step in steps:
            step.kill()
            step.communicate()
    assert sum(each.count("an instance of") for each in server.said) == missing


def test_a_server_that_loads_nothing_more_is_ended(server: Server, killed: list[int]) -> None:
    server.watchdog.look(100.0)
    server.watchdog.look(119.0)
    assert killed == []
    server.watchdog.look(121.0)
    assert killed == [os.getpid()]
    assert server.said[-1] == f"the server has not begun to load {STEP} anew for 21 s: ending it"
    assert server.watchdog.has_given_up


def test_after_the_end_was_asked_for_nothing_is_news(server: Server) -> None:
    server.watchdog.stop()
    server.watchdog.look(100.0)
    assert server.said == []
    assert server.reloads == 0
