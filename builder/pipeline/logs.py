"""What compilers write while an engine is built: shown on request, else kept for the case that the build fails."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.engines import first_line
from codetr_client.outputs import write_whole
from serving.errors import CodetrError

# Those of `torch` have a handler of PyTorch's own on standard error.
_TORCH = ("torch.onnx", "torch.export", "torch._inductor")
_MARK = "log of codetr build\n"  # the first line, by which a log of an earlier build is known again
_OTHERS = ("onnxscript", "onnx_ir", "torch_tensorrt")


@contextmanager
def compiler_logs(verbose: bool, kept: Path) -> Iterator[None]:
    """Show what compilers log and print during a `with` block, or keep it from the terminal.

    What the block's own code prints is treated alike, down to the file descriptors: compilers are not Python.

    Args:
        verbose: show it.
        kept: where the log goes if the block fails; a folder for temporary files is taken where that is impossible.

    Raises:
        CodetrError: that of the block, or one in place of any other exception of it; it also names the log.
    """
    with tempfile.TemporaryDirectory(prefix="codetr-log-") as folder:
        path = Path(folder, kept.name)
        try:
            if verbose:
                with _talkative():
                    yield
            else:
                with _redirected(path), _talkative():
                    try:
                        yield
                    except Exception:
                        traceback.print_exc()  # the part of it that the one-line message leaves out
                        raise
        except Exception as error:
            if verbose:
                raise
            log = f"the compilers' log is {keep_text(path.read_text(errors='replace'), kept)}, and `verbose` shows it"
            if isinstance(error, CodetrError):
                raise type(error)(f"{error}; {log}") from error
            raise CodetrError(f"{type(error).__name__}: {first_line(error)}; {log}") from error


@contextmanager
def _talkative() -> Iterator[None]:
    """Have the compilers' Python parts log what they do."""
    loggers = [logging.getLogger(name) for name in (*_TORCH, *_OTHERS)]
    levels = [logger.level for logger in loggers]
    handler = logging.StreamHandler()
    try:
        for logger in loggers:
            logger.setLevel(logging.INFO)
        for name in _OTHERS:
            logging.getLogger(name).addHandler(handler)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
            logger.removeHandler(handler)


@contextmanager
def _redirected(path: Path) -> Iterator[None]:
    """Send standard output and standard error to a file, for this process and those it starts."""
    streams = (sys.stdout, sys.stderr)
    saved = [os.dup(number) for number in (1, 2)]
    with path.open("w", encoding="utf-8") as file:
        try:
            for number, stream in zip((1, 2), streams, strict=True):
                stream.flush()
                os.dup2(file.fileno(), number)
            sys.stdout = sys.stderr = file
            yield
        finally:
            file.flush()
            sys.stdout, sys.stderr = streams
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def keep_text(text: str, kept: Path) -> Path:
    """Write a log to `kept`, or to a folder for temporary files where that is impossible; return where it is.

    A log of an earlier build is replaced; where another file is, a number is put behind the name.
    """
    content = f"{_MARK}{text}".encode()
    free, count = kept, 1
    try:
        while not _is_free(free):
            free, count = kept.with_name(f"{kept.stem}-{count + 1}{kept.suffix}"), count + 1
        write_whole(free, content)
        return free
    except (OSError, CodetrError):
        elsewhere = Path(tempfile.mkdtemp(prefix="codetr-")) / kept.name
        elsewhere.write_bytes(content)
        return elsewhere


def _is_free(path: Path) -> bool:
    if not os.path.lexists(path):
        return True
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MARK)) == _MARK.encode()
