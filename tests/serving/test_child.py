"""A bound child ends with its parent, and else is the command itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil

from serving.child import bound_to_us

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
