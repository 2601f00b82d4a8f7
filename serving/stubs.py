"""The processes of a server's Python steps, from /proc.

Triton 2.51 waits for ever for the answer of a step that died while it was loaded, and its log says nothing. The
process stays a zombie meanwhile: that is how it is told.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
# Fields of /proc/PID/stat (proc_pid_stat(5)), counted from the one behind the name in parentheses.
_STATE, _PARENT, _EXIT_CODE = 0, 1, 49
# In a step's arguments, which each release orders in its own way.
_MODEL = re.compile(r"/([^/\0]+)/\d+/[^/\0 ]+\.py\b")


@dataclass(frozen=True)
class Stub:
    """A child process of a server: one instance of a Python step.

    Attributes:
        pid: its process id.
        model: its name, such as codetr_preprocess; "" where its arguments do not tell, or it has died.
        status: its exit status, negative for a signal; None while it runs.
    """

    pid: int
    model: str
    status: int | None


def stubs_of(server: int) -> list[Stub]:
    """Return the steps' processes of the server with a process id, dead ones included until the server notices."""
    return [stub for entry in _PROC.iterdir() if entry.name.isdigit() and (stub := _child(entry, server))]


def _child(entry: Path, server: int) -> Stub | None:
    try:
        fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        if int(fields[_PARENT]) != server:
            return None
        if fields[_STATE] in "ZX":
            return Stub(int(entry.name), "", os.waitstatus_to_exitcode(int(fields[_EXIT_CODE])))
        model = _MODEL.search((entry / "cmdline").read_bytes().decode(errors="replace"))
    except (OSError, ValueError, IndexError):  # it ends at this moment
        return None
    return Stub(int(entry.name), model[1] if model else "", None)


class LoadingStubs:
    """Watches the steps of a server that is loading them; `died` tells of one whose death it does not notice."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._names: dict[int, str] = {}
        self._dead: set[int] = set()
        self._any_alive = True

    @property
    def all_gone(self) -> bool:
        """Whether there were steps, and none was alive at the last call of `died`."""
        return bool(self._names) and not self._any_alive

    def died(self, begun: Sequence[str]) -> tuple[str, int] | None:
        """Return the name and the exit status of a step that was dead at the last call already.

        Call it every half second or so: a server that notices takes the dead process away at once, and says itself what
        happened.

        Args:
            begun: the instances that the server has begun to load, by which a step is named that died before anybody
                looked.
        """
        stubs = stubs_of(self._server)
        self._names |= {stub.pid: stub.model for stub in stubs if stub.status is None}
        self._any_alive = any(stub.status is None for stub in stubs)
        dead = {stub.pid: stub.status for stub in stubs if stub.status is not None}
        still = self._dead & dead.keys()
        self._dead = set(dead)
        pid = min(still, default=None)
        if pid is None:
            return None
        # an instance's name is its model's with two numbers
        missing = Counter(re.sub(r"_\d+_\d+$", "", instance) for instance in begun) - Counter(self._names.values())
        return self._names.get(pid) or " or ".join(sorted(missing)) or "a Python step", dead[pid]
