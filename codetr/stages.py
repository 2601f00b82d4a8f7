"""Shows the stages of a long command: a spinner while one runs, its time and the peak memory once it is done."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


class Stages:
    """Called with a stage's name, a context manager that reports it on the console."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Report the stage `name` while the `with` block runs; a failed one gets no tick."""
        started = time.monotonic()
        with self.console.status(name):
            yield
        elapsed = time.monotonic() - started
        self.console.print(
            f"[green]✓[/] {name:<18} {elapsed:7.1f} s   peak {peak_memory_gib():5.2f} GiB", highlight=False
        )


def peak_memory_gib() -> float:
    """Return the largest resident memory of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
