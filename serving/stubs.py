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
from serving.contract import GUESTS

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
        self._statuses: dict[int, int] = {}
        self._dead: set[int] = set()
        self._any_alive = True

    @property
    def all_gone(self) -> bool:
        """Whether there were steps, and none was alive at the last look."""
        return bool(self._names) and not self._any_alive

    def look(self) -> set[int]:
        """Note which processes live and how dead ones ended; return the dead ones' process ids.

        Call it as often as can be: a server that notices a death takes the process away within a second, and nobody
        can say then how it ended.
        """
        stubs = stubs_of(self._server)
        # one that is ending has no arguments any more, but lives
        self._names |= {stub.pid: stub.model or self._names.get(stub.pid, "") for stub in stubs if stub.status is None}
        self._any_alive = any(stub.status is None for stub in stubs)
        dead = {stub.pid: stub.status for stub in stubs if stub.status is not None}
        self._statuses |= dead
        return set(dead)

    def died(self, begun: Sequence[str]) -> tuple[str, int] | None:
        """Return the name and the exit status of a step that was dead at the last call already.

        Call it every half second or so: a server that notices says itself that a step has died.

        Args:
            begun: the instances that the server has begun to load, by which a step is named that died before anybody
                looked.
        """
        dead = self.look()
        still = self._dead & dead
        self._dead = dead
        pid = min(still, default=None)
        if pid is None:
            return None
        return self._names.get(pid) or " or ".join(self._unseen(begun)) or "a Python step", self._statuses[pid]

    def statuses(self, begun: Sequence[str]) -> dict[str, int]:
        """Return the exit status, unless it is 0, of each model of which a process was seen dead, by the model's name.

        With 0 the process ends that Triton starts to complete a configuration.

        Args:
            begun: as of `died`.
        """
        unseen = self._unseen(begun)
        found: dict[str, int] = {}
        for pid, status in self._statuses.items():
            if status != 0:
                found |= dict.fromkeys([self._names[pid]] if self._names.get(pid) else unseen, status)
        return found

    def _unseen(self, begun: Sequence[str]) -> list[str]:
        """Return the models of which an instance was begun that was never seen alive."""
        # an instance's name is its model's with two numbers, or a guest's with one
        models = Counter(re.sub(rf"(_\d+|{GUESTS})_\d+$", "", each) for each in begun)
        return sorted(models - Counter(self._names.values()))
