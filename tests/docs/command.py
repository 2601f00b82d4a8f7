"""What `codetr` is while the blocks of the pages run: the command itself, with four differences that save time.

* A build that names no size is of 96x144 pixels, a tenth of the demo's.
* A build with the same arguments as an earlier one, but for its repository, is a copy of what that one wrote.
* `serve` starts nothing: one server runs for all pages. It checks that the repository is the one that runs there.
* Commands that ask a server ask that one, where no --url says otherwise.

The environment variable CODETR_PAGES names the folder with what was built and what is served.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import sys
from pathlib import Path

STATE = "CODETR_PAGES"
SMALL = ("--height", "96", "--width", "144")
SERVED = "served.json"  # in that folder: the server's gRPC address, and the hashes of the files it serves


def main(words: list[str]) -> None:
    """Run one command."""
    state = Path(os.environ[STATE])
    if words[:1] == ["serve"]:
        _check_served(words, json.loads((state / SERVED).read_text(encoding="utf-8")))
    elif words[:1] == ["build"]:
        _build(words, state / "built")
    else:
        run(words if words[:1] not in (["detect"], ["evaluate"]) else _with_url(words, state))


def run(words: list[str]) -> None:
    """Run the command itself."""
    from codetr import cli

    sys.argv = ["codetr", *words]
    cli.main()


def _with_url(words: list[str], state: Path) -> list[str]:
    if "--url" in words or "--source" in words:
        return words
    return [*words, "--url", json.loads((state / SERVED).read_text(encoding="utf-8"))["grpc"]]


def _build(words: list[str], kept: Path) -> None:
    place = words.index("--repository") + 1
    destination, fresh = Path(words[place]), not Path(words[place]).exists()
    same = [word for index, word in enumerate(words) if index != place]
    copy = kept / hashlib.sha256(json.dumps(same).encode()).hexdigest()
    if fresh and copy.is_dir():
        shutil.copytree(copy, destination)
        return
    try:
        run(words if "--height" in words else [*words, *SMALL])
    finally:
        if fresh and destination.is_dir():
            shutil.copytree(destination, copy)


def _check_served(words: list[str], served: dict[str, object]) -> None:
    """Parse the options as `codetr serve` does, and compare the repository with what runs."""
    import typer

    from codetr.cli import app
    from serving.manifest import FILES, read_manifest
    from serving.repository import check_repository

    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    values = command.make_context("serve", words[1:]).params
    assert set(values) == set(inspect.signature(command.callback).parameters)
    check_repository(values["repository"])
    if read_manifest(values["repository"])[FILES] != served["files"]:
        sys.exit(f"error: {values['repository']} is not what the README builds; the pages share one server")


if __name__ == "__main__":
    main(sys.argv[1:])
