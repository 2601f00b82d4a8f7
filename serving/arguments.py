"""A secret that a program takes as an argument, out of the sight of other users."""

from __future__ import annotations

from contextlib import suppress

from serving.board import process_fields

# Of `process_fields`.
_ARG_START, _ARG_END = 45, 46


def hide_argument(pid: int, secret: str) -> bool:
    """Overwrite a secret in the arguments that every user's `ps` shows of a child process; return whether that worked.

    The program must have read its arguments. Linux keeps them in the process's own memory, which its parent may write.
    """
    with suppress(OSError, ValueError, IndexError):
        fields = process_fields(pid)
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            arguments = memory.read(end - start)
            hidden = arguments.replace(secret.encode(), b"*" * len(secret))
            memory.seek(start)
            memory.write(hidden)
        return True
    return False
