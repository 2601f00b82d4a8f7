"""What gRPC is in a fork: it hangs where it ran in the parent, so it is refused there by name."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from codetr_client.errors import ClientStateError

# grpcio's own words for yes, in src/python/grpcio/grpc/_cython/_cygrpc/fork_posix.pyx.pxi
_YES = frozenset({"yes", "Yes", "YES", "true", "True", "TRUE", "1"})
FORK_SUPPORT = "GRPC_ENABLE_FORK_SUPPORT"
_THREADS = ("grpc_", "event_engine")  # how the names of gRPC's threads begin; they run from the first channel on


class _Process:
    """What is known about gRPC in this process."""

    made_channels = False  # by this package, here or in a process this one is a fork of
    ran = False  # at the last fork, whoever had made the channels; once all are gone its threads end, and forks work
    is_fork_of_it = False  # of one in which it ran
    is_fork_with_grpc = False  # of one that had at least imported it


def note_channel() -> None:
    """Remember that gRPC runs in this process."""
    _Process.made_channels = True


def is_doubtful() -> bool:
    """Return whether gRPC may be dead in this process, which no system tells for certain."""
    return _Process.is_fork_with_grpc


def check() -> None:
    """Raise ClientStateError in a fork of a process in which gRPC ran: a channel would hang, the parent's break."""
    if _Process.is_fork_of_it and os.environ.get(FORK_SUPPORT) not in _YES:
        raise ClientStateError(
            "this process is a fork of one that used gRPC, which does not work after a fork: use protocol 'http', "
            f"multiprocessing's 'spawn', or start Python with {FORK_SUPPORT}=1"
        )


def _before() -> None:
    _Process.ran = _Process.made_channels or ("grpc" in sys.modules and _has_threads())


def _in_child() -> None:
    _Process.is_fork_of_it = _Process.is_fork_of_it or _Process.ran
    _Process.is_fork_with_grpc = _Process.is_fork_with_grpc or "grpc" in sys.modules


def _has_threads() -> bool:
    """Return whether threads of gRPC run here; False where the system does not name threads."""
    for task in Path("/proc/self/task").glob("*/comm"):
        try:
            name = task.read_text(encoding="utf-8", errors="replace")
        except OSError:  # it has ended
            continue
        if name.startswith(_THREADS):
            return True
    return False


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before, after_in_child=_in_child)
