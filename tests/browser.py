"""A real Chromium, without a window: what a page is once it has run, and how it looks."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """Return the program, or skip the test; in CI, which installs one, fail it."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = f"no Chromium ({', '.join(NAMES)}); Debian's package is chromium"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return found


def run_page(page: Path, *options: str, fragment: str = "") -> str:
    """Return what a page's document is after its scripts have run; it reaches no network."""
    command = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,900",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={page.parent / 'profile'}",
        "--virtual-time-budget=20000", *options, f"file://{page}{fragment}",
    ]  # fmt: skip  # a command line
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout
