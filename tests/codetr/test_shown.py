from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from codetr.shown import DONE, line, new_console, progress_bar, shown

ROOT = Path(__file__).parents[2]
# What rich and a terminal would each make something else of, and what is to be seen.
ODD = "[red]a[/red] :smile: [/] \x1b[31mb 1.5 http://x \u202e\udce9"
SEEN = r"[red]a[/red] :smile: [/] \x1b[31mb 1.5 http://x \u202e\udce9"


def printed(*what: object, is_terminal: bool = False) -> str:
    console = new_console(io.StringIO())
    console.width = 200
    console._force_terminal = is_terminal
    for each in what:
        console.print(each, soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("is_terminal", [False, True], ids=["file", "terminal"])
def test_text_from_outside_is_seen_as_it_is(is_terminal: bool) -> None:
    table = Table("name")
    table.add_row(shown(ODD))
    output = printed(shown(ODD), line("x ", ODD), table, is_terminal=is_terminal)
    assert output.count(SEEN) == 3
    assert printed(line(DONE, f" {ODD}")) == f"✓ {SEEN}\n"


def test_the_description_of_a_progress_bar_is_seen_as_it_is() -> None:
    console = new_console(io.StringIO())
    console.width = 200
    progress = progress_bar(console)
    progress.add_task(ODD.split("\x1b")[0], total=2)
    console.print(progress.get_renderable())
    assert isinstance(console.file, io.StringIO)
    assert SEEN.split(r"\x1b")[0].strip() in console.file.getvalue()


PROGRAM = """
import sys
from codetr import cli
from codetr.shown import new_console, say, shown

def app():
    say(sys.argv[1])
    print(sys.argv[1])
    new_console().print(shown(sys.argv[1]))
    raise cli.CodetrError("no " + sys.argv[1])

cli.app = app
cli.main()
"""


@pytest.mark.parametrize("encoding", ["utf-8", "koi8-r"])
def test_names_that_the_output_cannot_encode_end_no_command(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, b"[/red] \xc3\xa4 \xe9 :dog:"],
        capture_output=True,
        env={"PYTHONIOENCODING": encoding, "PYTHONPATH": f"{ROOT}:{ROOT / 'clients'}", "PYTHONUTF8": "1"},
        check=False,
    )
    letter = b"\xc3\xa4" if encoding == "utf-8" else rb"\xe4"
    wanted = b"[/red] " + letter + rb" \udce9 :dog:"
    assert done.stdout.splitlines() == [wanted] * 3, done.stderr
    assert done.stderr.splitlines() == [b"error: no " + wanted]
    assert done.returncode == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_files_that_are_closed_lead_nowhere(tmp_path: Path, closed: str) -> None:
    """Else a file that is opened next would get their number, and what is printed."""
    code = """
import sys
from codetr.shown import escape_what_cannot_be_encoded, open_what_is_closed
open_what_is_closed()
escape_what_cannot_be_encoded()
file = open(sys.argv[1], "w")
print("said")
print("said", file=sys.stderr)
sys.exit(file.fileno())
"""
    command = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", code, str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode > 2, done.stderr
    assert (tmp_path / "file").read_text() == ""
