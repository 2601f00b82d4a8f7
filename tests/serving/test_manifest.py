from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from serving.errors import CodetrError
from serving.manifest import check_files, read_manifest, sha256


def test_sha256_of_more_than_one_block(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(None, "is incomplete: manifest.json is missing; build it again", id="missing"),
        pytest.param("{", "manifest.json is not JSON", id="cut short"),
        pytest.param("{}", "manifest.json lists no 'files'", id="of an older build"),
    ],
)
def test_an_unusable_manifest_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CodetrError, match=message):
        read_manifest(tmp_path)


def test_files_are_compared_with_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"one")
    built = hashlib.sha256(b"one").hexdigest()
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"model.bin": built}}))
    check_files(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"two")
    with pytest.raises(CodetrError, match=f"{hashlib.sha256(b'two').hexdigest()}, manifest.json says {built}"):
        check_files(tmp_path)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(CodetrError, match=r"incomplete: model.bin is missing"):
        check_files(tmp_path)
