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

from serving.board import process_fields

# Of `process_fields`.
_STATE, _PARENT, _STARTED, _EXIT_CODE = 0, 1, 19, 49
# In a step's arguments, which each release orders in its own way.
_MODEL = re.compile(r"/([^/\0]+)/\d+/[^/\0 ]+\.py\b")


@dataclass(frozen=True)
class Stub:
    """A child process of a server: one instance of a Python step.

    Attributes:
        pid: its process id.
        model: its name, such as codetr_preprocess; "" where its arguments do not tell, or it has died.
        status: its exit status, negative for a signal; None while it runs.
        instance: its name, such as codetr_preprocess_0_1; "" as for the model.
        started: in clock ticks since the machine's start.
    """

    pid: int
    model: str
    status: int | None
    instance: str = ""
    started: int = 0


def stubs_of(server: int) -> list[Stub]:
    """Return the steps' processes of the server with a process id, dead ones included until the server notices."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [stub for pid in pids if (stub := _child(pid, server))]


def _child(pid: int, server: int) -> Stub | None:
    try:
        fields = process_fields(pid)
        if int(fields[_PARENT]) != server:
            return None
        if fields[_STATE] in "ZX":
            return Stub(pid, "", os.waitstatus_to_exitcode(int(fields[_EXIT_CODE])))
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (OSError, ValueError, IndexError):  # it ends at this moment
        return None
    model = next((match[1] for word in words if (match := _MODEL.search(word))), "")
    instance = next((word for word in reversed(words) if model and word.startswith(f"{model}_")), "")
    return Stub(pid, model, None, instance, int(fields[_STARTED]))


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
