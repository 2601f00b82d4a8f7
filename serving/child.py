"""Child processes that do not outlive the process that started them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

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
