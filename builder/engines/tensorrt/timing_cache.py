"""The file of `--timing-cache`: TensorRT's kernel timings behind a mark, by which no other file is taken for it.

TensorRT reads what it cannot use as an empty cache and writes over it, so a wrong path would cost the file that lies
there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.engines import EngineError
from codetr_client.outputs import write_whole

MARK = b"timings of codetr build\n"


def check(path: Path) -> None:
    """Check that a build may write its timings to `path`, before anything that takes time.

    Raises:
        EngineError: it is another file, or its folder cannot be written.
    """
    if not os.path.isdir(path.absolute().parent) or not os.access(path.absolute().parent, os.W_OK):
        raise EngineError(f"timing cache {path}: expected a file in a folder that can be written; name another")
    if os.path.lexists(path):
        _read(path)


@contextmanager
def unpacked(path: Path | None) -> Iterator[Path | None]:
    """Give TensorRT a file of its own with the timings of `path`; what it leaves is kept, of a build that fails too.

    Raises:
        EngineError: as `check`.
    """
    if path is None:
        yield None
        return
    check(path)
    with tempfile.TemporaryDirectory(prefix="codetr-timings-") as folder:
        file = Path(folder, "timings")
        if path.exists():
            file.write_bytes(_read(path))
        try:
            yield file
        finally:
            if file.is_file():
                write_whole(path, MARK + file.read_bytes())


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EngineError(f"timing cache {path}: cannot be read ({error.strerror}); name another file") from error
    if content and not content.startswith(MARK):
        raise EngineError(
            f"timing cache {path}: it is no file of an earlier build's timings, and would be replaced; name another"
        )
    return content.removeprefix(MARK)
