"""Where what is built or fetched once is kept for later."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "CODETR_CACHE"  # environment: the folder to use instead


def cache_folder() -> Path:
    """Return the user's folder of this project's caches, which need not be there: `~/.cache/codetr` on Linux."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else platformdirs.user_cache_path("codetr", appauthor=False)
