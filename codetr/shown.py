"""What commands print: names and messages from outside as they are, whatever rich or a terminal would make of them."""

from __future__ import annotations

import os
import sys
from typing import IO, TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from codetr_client.text import printable

if TYPE_CHECKING:
    from rich.style import StyleType

DONE = Text("✓", "green")


def new_console(file: IO[str] | None = None, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console that does not turn `:smile:` into a picture; what it cannot encode it escapes."""
    return Console(file=file, stderr=stderr, width=width, emoji=False, highlight=False)


def shown(text: object, style: StyleType = "") -> Text:
    """Return text from outside for a table or a console, without markup, emoji codes and control characters."""
    return Text(printable(text), style)


def line(*parts: str | Text) -> Text:
    """Return a line to print of parts: strings and what `shown` returns."""
    return Text.assemble(*(shown(part) if isinstance(part, str) else part for part in parts))


def say(text: object, err: bool = False, nl: bool = True) -> None:
    """Print a line without rich."""
    typer.echo(printable(text), err=err, nl=nl)


def progress_bar(console: Console) -> Progress:
    """Return a progress bar whose descriptions are shown as they are, and which is gone in the end."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def open_what_is_closed() -> None:
    """Let standard files that a service manager has closed lead nowhere; else the next file opened would be one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # as long as the process


def escape_what_cannot_be_encoded() -> None:
    """Have standard output escape what its encoding lacks, as standard error does."""
    reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
