"""The pages for people, and the code blocks in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Their blocks are run, or carry a mark that says why not.
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))
# Pages of other folders, of which only commands, imports and links are checked.
OTHER_PAGES = ("clients/README.md", "perf/results/README.md")

_BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*?) -->\n)?^(?P<fence>```)(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block, with the comment that stands on the line before it."""

    page: str
    line: int  # of the fence, from 1
    language: str
    text: str
    note: str  # "" without a comment

    @property
    def place(self) -> str:
        """Where it is, for messages and test names."""
        return f"{self.page}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it is not run; None if it is."""
        return self.note.removeprefix("not run: ") if self.note.startswith("not run: ") else None

    @property
    def file(self) -> str | None:
        """The file that it shows, from the project's folder; None if it shows none."""
        return self.note.removeprefix("file: ") if self.note.startswith("file: ") else None


def read(page: str) -> str:
    """Return a page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """Return a page's blocks in their order."""
    return blocks_of(read(page), page)


def blocks_of(text: str, page: str) -> list[Block]:
    """Return the blocks in the text of a page."""
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("fence")) + 1
        found.append(Block(page, line, match["language"].strip(), match["text"], match["note"] or ""))
    return found
