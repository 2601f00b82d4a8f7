"""One HTML page of an engine, which needs nothing but a browser: graph, details, tables."""

from __future__ import annotations

import html
import json
from pathlib import Path

from builder.inspect.anatomy import Anatomy

TEMPLATE = Path(__file__).with_name("page.html")


def to_page(anatomy: Anatomy) -> str:
    """Return the page's text."""
    content = {**anatomy.to_dict(), "by_module": anatomy.modules()}
    # within a script only "</" and "<!--" would end or change it
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace("__TITLE__", html.escape(anatomy.title))
    return page.replace("__DATA__", text)
