"""The shape of a repository, for tests of what looks at one."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.contract import DETECTOR, ENSEMBLE, POSTPROCESS, PREPROCESS
from serving.manifest import manifest_path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The shape of a repository, with no engine listed."""
    folder = tmp_path / "repository"
    for model in (ENSEMBLE, PREPROCESS, DETECTOR, POSTPROCESS):
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "config.pbtxt").touch()
    for step in (PREPROCESS, POSTPROCESS):
        (folder / step / "1" / "model.py").touch()
    manifest_path(folder).write_text('{"files": {}}')
    return folder
