"""How one model of a running server is loaded anew, although no client can load or unload any.

The server loads the links that `serving.repository.link_repository` makes, in Triton's mode `poll`. Both protocols
refuse to load and unload then, and every second Triton looks whether the newest time of change in a model's folder has
grown. If so it loads the model beside the old one, and changes over when the new one is ready. Each folder gets one
file of a time far ahead. So what changes in the repository itself is not loaded, as in the mode `none`; only `reload`
makes that time grow, in a folder that only the server's user can enter.
"""

from __future__ import annotations

import os
from pathlib import Path

POLL_OPTIONS = ("--model-control-mode=poll", "--repository-poll-secs=1")
_GENERATION = "generation"
_AHEAD = 2_114_380_800  # seconds: 1 January 2037, which every file system can store


def make_reloadable(models: Path) -> None:
    """Give each model of the folder that a server is to load the file by which `reload` works."""
    for model in models.iterdir():
        (model / _GENERATION).touch()
        os.utime(model / _GENERATION, (_AHEAD, _AHEAD))


def reload(models: Path, model: str) -> None:
    """Let the server of a folder load a model anew; it begins within a second or so."""
    generation = models / model / _GENERATION
    next_time = generation.stat().st_mtime + 1
    os.utime(generation, (next_time, next_time))
