from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving.python import python_folder

# What the steps have: Triton starts them in a locale of ASCII, and Python takes nothing from the environment.
LIKE_A_STEP = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_this_interpreters_own_folder_does_where_all_is_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry.isascii()])
    assert python_folder(tmp_path) == Path(sys.executable).parent
    assert list(tmp_path.iterdir()) == []


def test_packages_under_a_path_with_an_umlaut_are_found_in_a_locale_of_ascii(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / 'jürgen\'s "packages"'
    package.mkdir()
    (package / "found_by_its_path.py").write_text("name = 'yes'")
    monkeypatch.setattr(sys, "path", ["of the script", *sys.path, str(package)])
    (tmp_path / "private").mkdir()
    python = python_folder(tmp_path / "private") / "python3"
    code = "import found_by_its_path, numpy, sys; print(found_by_its_path.name, 'of the script' in sys.path)"
    environment = {**LIKE_A_STEP, "LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")}
    done = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("yes False\n", "")
