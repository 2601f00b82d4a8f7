"""Child processes that do not outlive the process that started them, and what they may open."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Sequence

from serving.errors import CodetrError

# Done by a process between the two, because Python code may not run between fork and exec in a threaded parent.
_PR_SET_PDEATHSIG = 1
_BIND_AND_EXEC = (
    f"import ctypes, os, sys; ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGTERM)}); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)


def bound_to_us(command: Sequence[str]) -> list[str]:
    """Return a command that runs `command` and gets SIGTERM when the thread that starts it dies, however that happens.

    The process id stays the same. Linux only, as Triton is.
    """
    return [sys.executable, "-c", _BIND_AND_EXEC, str(os.getpid()), *command]


# Files and connections at once: of a server with hundreds of clients, and of one that starts at all.
_FILES, _FEWEST_FILES = 4096, 256


def allow_open_files() -> None:
    """Let this process and what it starts open as many files at once as a server with many clients has.

    Raises:
        CodetrError: not even those of a start are allowed; without them Triton says that its ports are taken.
    """
    soft, hard = (_count(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    if soft < min(_FILES, hard):
        soft = int(min(_FILES, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if soft < _FEWEST_FILES:
        raise CodetrError(
            f"a process may open {soft:g} files at once here, a server needs {_FEWEST_FILES}; raise the limit, for "
            f"example ulimit -n {_FILES}"
        )


def _count(limit: int) -> float:
    return float("inf") if limit == resource.RLIM_INFINITY else limit
