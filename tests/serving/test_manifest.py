from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving import manifest as module
from serving.errors import CodetrError
from serving.manifest import check_files, check_versions, engine_names, read_manifest, sha256


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


def test_each_engine_has_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"files": {}, "of": "codetr"}')
    (tmp_path / "large.manifest.json").write_text('{"files": {"large.bin": "0"}, "of": "large"}')
    assert engine_names(tmp_path) == ["codetr", "large"]
    assert [read_manifest(tmp_path, name)["of"] for name in engine_names(tmp_path)] == ["codetr", "large"]
    check_files(tmp_path)
    with pytest.raises(CodetrError, match=r"incomplete: large.bin is missing"):
        check_files(tmp_path, "large")
    with pytest.raises(CodetrError, match=r"incomplete: small.manifest.json is missing"):
        read_manifest(tmp_path, "small")


def test_a_detector_without_a_manifest_is_still_an_engine(tmp_path: Path) -> None:
    (tmp_path / "large_detector").mkdir()
    assert engine_names(tmp_path) == ["large"]


def plan_manifest(folder: Path, name: str = "manifest.json", **changes: Any) -> None:
    content = {"files": {}, "engine": "tensorrt", "versions": {"tensorrt": "11.1.0.6"}, **changes}
    (folder / name).write_text(json.dumps(content))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Says which TensorRT this machine has."""

    def install(version: str | None) -> None:
        def find(name: str) -> str:
            assert name == "tensorrt"
            if version is None:
                raise module.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(module.metadata, "version", find)

    return install


def test_another_tensorrt_is_refused_with_both_versions(tmp_path: Path, installed: Any) -> None:
    plan_manifest(tmp_path)
    installed("10.15.1.29")
    expected = r"the plan of codetr in .* was built with TensorRT 11\.1\.0\.6, this machine has 10\.15\.1\.29; build"
    with pytest.raises(CodetrError, match=expected):
        check_versions(tmp_path)
    plan_manifest(tmp_path, "large.manifest.json", versions={"tensorrt": "10.15.1.29"})
    check_versions(tmp_path, "large")


@pytest.mark.parametrize(
    ("version", "changes"),
    [
        pytest.param("11.1.0.6", {}, id="the same"),
        pytest.param("11.2.0.1", {"version_compatible": True}, id="a plan for later versions"),
        pytest.param("10.15.1.29", {"engine": "onnx"}, id="no plan"),
        pytest.param("10.15.1.29", {"versions": {}}, id="a plan of unknown version"),
        pytest.param(None, {}, id="no TensorRT in Python: the server has its own"),
    ],
)
def test_versions_that_are_not_judged(
    tmp_path: Path, installed: Any, version: str | None, changes: dict[str, Any]
) -> None:
    plan_manifest(tmp_path, **changes)
    installed(version)
    check_versions(tmp_path)
