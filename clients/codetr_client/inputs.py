"""Reading a file that somebody names: one that would never end, or never begin, is refused."""

from __future__ import annotations

import errno
import os
import stat

_CHUNK = 1 << 20
MOST_BYTES = (1 << 31) - 1  # of a gRPC message, and so of an image


def read_file(path: str | os.PathLike[str], most: int | None = MOST_BYTES) -> bytes:
    """Return the bytes of a file.

    Args:
        path: of the file; what a shell makes of `<(command)` and /dev/stdin may be read too.
        most: bytes; None for any number.

    Raises:
        OSError: it cannot be read, is a device or a named pipe, or has more bytes; `strerror` says so.
        ValueError: the path has a null byte.
    """
    with open(path, "rb", opener=_open) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise _too_large(path, most)
        parts, count = list[bytes](), 0
        while part := file.read(max(_CHUNK, size)):
            parts.append(part)
            count += len(part)
            if most is not None and count > most:
                raise _too_large(path, most)
        return b"".join(parts)


def _open(path: str, flags: int) -> int:
    mode = os.stat(path).st_mode
    # a pipe that a shell has made has no name: what its path leads to is none
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or (stat.S_ISFIFO(mode) and os.path.exists(os.path.realpath(path))):
        kind = "a named pipe" if stat.S_ISFIFO(mode) else "a device"
        raise OSError(errno.EINVAL, f"it is {kind}, not a file", os.fspath(path))
    return os.open(path, flags)


def _too_large(path: str | os.PathLike[str], most: int) -> OSError:
    return OSError(errno.EFBIG, f"it has more than {most:,} bytes", os.fspath(path))
