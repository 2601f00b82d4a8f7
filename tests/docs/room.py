"""A folder in which the blocks of one page run, with what the pages take for granted in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from serving.launch import TritonServer
from serving.manifest import FILES, read_manifest
from tests.docs.command import SERVED, STATE
from tests.docs.pages import ROOT, Block

# What a checkout has and the pages name; the rest of it is not there.
LINKED = ("demo", "docs", "examples", "clients", "tests", "perf", "model_repository", "Makefile")
TIMEOUT = 600.0  # seconds for one block, on a machine that does other things too


@dataclass(frozen=True)
class Room:
    """A folder, the state that all rooms share, and the server that runs for them (None before it does)."""

    folder: Path
    state: Path
    server: TritonServer | None = None

    def furnish(self) -> None:
        """Put the pages' files into the folder: links to the checkout, photographs, an environment to activate."""
        from demo import SAMPLE_IMAGE

        for name in LINKED:
            (self.folder / name).symlink_to(ROOT / name)
        (self.folder / "photos").mkdir()
        for name in ("street.jpg", "photos/street.jpg", "photos/park.jpg"):
            shutil.copyfile(SAMPLE_IMAGE, self.folder / name)
        activate = self.folder / ".venv/bin/activate"
        activate.parent.mkdir(parents=True)
        activate.write_text("")

    def run(self, block: Block) -> None:
        """Run a block; a failure shows its end."""
        program = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*program, self.with_ports(block.text)],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, (
            f"{block.place} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}"
        )

    def with_ports(self, text: str) -> str:
        """Return a block that asks the tests' server instead of Triton's default ports."""
        if self.server is None:
            return text
        return text.replace("localhost:8001", self.server.grpc_url).replace("localhost:8000", self.server.http_url)

    def environment(self) -> dict[str, str]:
        """Return the environment of a block: its `codetr` is `tests/docs/command.py`, its `python` this one."""
        programs = self.state / "bin"
        if not programs.is_dir():
            programs.mkdir(parents=True)
            script = programs / "codetr"
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tests/docs/command.py"}" "$@"\n')
            script.chmod(0o755)
        path = [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        modules = [str(ROOT), str(ROOT / "clients")]
        return {
            **os.environ,
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": os.pathsep.join(modules),
            "PYTHONWARNINGS": "error::DeprecationWarning:__main__",
            STATE: str(self.state),
        }


def remember(state: Path, server: TritonServer) -> None:
    """Write down what is served, for `tests/docs/command.py`."""
    files = read_manifest(server.options.repository)[FILES]
    state.joinpath(SERVED).write_text(json.dumps({"grpc": server.grpc_url, "files": files}), encoding="utf-8")
