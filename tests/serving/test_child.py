"""A bound child ends with its parent, and else is the command itself."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys

import psutil
import pytest

from serving.child import allow_open_files, bound_to_us
from serving.errors import CodetrError

PARENT = (
    "import subprocess, sys, time; from serving.child import bound_to_us; "
    "child = 'import time; print(1, flush=True); time.sleep(600)'; "
    "print(subprocess.Popen(bound_to_us([sys.executable, '-c', child])).pid, flush=True); time.sleep(600)"
)


def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        said = {int(parent.stdout.readline()), int(parent.stdout.readline())}  # the child's id, and that it runs
        (pid,) = said - {1}
        child = psutil.Process(pid)
        parent.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs([child], timeout=60)
        if alive:
            child.kill()
    assert not alive


def test_arguments_output_and_status_are_the_commands() -> None:
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(3)", "a b", "--c"]
    done = subprocess.run(bound_to_us(command), capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("['a b', '--c']", 3)


def test_a_child_whose_parent_is_gone_already_does_not_start() -> None:
    command = bound_to_us([sys.executable, "-c", "print('started')"])
    elsewhere = [str(os.getppid()) if argument == str(os.getpid()) else argument for argument in command]
    done = subprocess.run(elsewhere, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 1)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        pytest.param((1024, 1 << 20), (4096, 1 << 20), id="raised"),
        pytest.param((1024, resource.RLIM_INFINITY), (4096, resource.RLIM_INFINITY), id="without a highest"),
        pytest.param((300, 1000), (1000, 1000), id="as far as it goes"),
        pytest.param((8192, 8192), (8192, 8192), id="enough"),
        pytest.param((resource.RLIM_INFINITY,) * 2, (resource.RLIM_INFINITY,) * 2, id="any number"),
    ],
)
def test_a_server_may_open_many_files(
    limits: tuple[int, int], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = [limits]
    monkeypatch.setattr(resource, "getrlimit", lambda which: held[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, both: held.append(both))
    allow_open_files()
    assert held[-1] == expected


def test_too_few_files_for_a_start_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    with pytest.raises(CodetrError, match=r"may open 64 files at once here, a server needs 256; .* ulimit -n 4096"):
        allow_open_files()
