from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving import manifest as module
from serving.errors import CodetrError
from serving.manifest import (
    check_files,
    check_versions,
    compute_capabilities,
    cpu,
    engine_names,
    read_manifest,
    sha256,
)


def test_sha256_of_more_than_one_block(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(None, "is incomplete: codetr_detector/manifest.json is missing; build it again", id="missing"),
        pytest.param("{", "manifest.json is not JSON", id="cut short"),
        pytest.param("{}", "manifest.json lists no 'files'", id="of an older build"),
    ],
)
def test_an_unusable_manifest_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    (tmp_path / "codetr_detector").mkdir()
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CodetrError, match=message):
        read_manifest(tmp_path)


def test_a_folder_without_engines_or_without_that_one_is_called_so(tmp_path: Path) -> None:
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CodetrError, match=r"no repository at .*; write one there with `codetr build`"):
            read_manifest(folder)
    (tmp_path / "roads_detector").mkdir()
    with pytest.raises(CodetrError, match="has no engine 'codetr'; it has roads"):
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


@pytest.mark.parametrize(
    "files",
    [
        ("codetr_detector/manifest.json", "large_detector/manifest.json"),
        pytest.param(("manifest.json", "large.manifest.json"), id="an older repository"),
        ("manifest.json", "large_detector/manifest.json"),
    ],
)
def test_each_engine_has_its_manifest(tmp_path: Path, files: tuple[str, str]) -> None:
    contents: list[dict[str, Any]] = [{"files": {}}, {"files": {"large.bin": "0"}}]
    for file, content in zip(files, contents, strict=True):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(json.dumps({**content, "of": "large" if "large" in file else "codetr"}))
    assert engine_names(tmp_path) == ["codetr", "large"]
    assert [read_manifest(tmp_path, name)["of"] for name in engine_names(tmp_path)] == ["codetr", "large"]
    check_files(tmp_path)
    with pytest.raises(CodetrError, match=r"incomplete: large.bin is missing"):
        check_files(tmp_path, "large")
    with pytest.raises(CodetrError, match=r"has no engine 'small'; it has codetr, large"):
        read_manifest(tmp_path, "small")


def test_a_detector_without_a_manifest_is_still_an_engine(tmp_path: Path) -> None:
    (tmp_path / "large_detector").mkdir()
    assert engine_names(tmp_path) == ["large"]


def test_a_later_schema_is_refused_by_its_number(tmp_path: Path) -> None:
    for schema in (5, "x", None):
        (tmp_path / "manifest.json").write_text(json.dumps({"files": {}, "schema": schema}))
        with pytest.raises(CodetrError, match=f"is of schema {schema}, this version reads up to 4; update"):
            read_manifest(tmp_path)


def write_manifest(folder: Path, name: str = "manifest.json", **changes: Any) -> None:
    content = {"files": {}, "engine": "tensorrt", "versions": {"tensorrt": "11.1.0.6", "torch": "2.13.0+cu130"}}
    (folder / name).write_text(json.dumps({**content, **changes}))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What this machine has, to be changed: versions by distribution, and compute capabilities."""
    here = SimpleNamespace(versions={"tensorrt": "11.1.0.6", "torch": "2.13.0"}, gpus=["9.0"])

    def find(name: str) -> str:
        if name not in here.versions:
            raise metadata.PackageNotFoundError(name)
        return str(here.versions[name])

    monkeypatch.setattr(metadata, "version", find)
    monkeypatch.setattr(module, "compute_capabilities", lambda: here.gpus)
    return here


@pytest.mark.parametrize("version_compatible", [False, True])
@pytest.mark.parametrize("version", ["10.15.1.29", "11.2.0.1"])
def test_another_tensorrt_is_refused_with_both_versions(
    tmp_path: Path, machine: SimpleNamespace, version: str, version_compatible: bool
) -> None:
    write_manifest(tmp_path, version_compatible=version_compatible)
    machine.versions["tensorrt"] = version
    expected = (
        rf"the engine codetr in .* was built with TensorRT 11\.1\.0\.6, this machine has {re.escape(version)}; build it"
    )
    with pytest.raises(CodetrError, match=expected):
        check_versions(tmp_path)
    write_manifest(tmp_path, "large.manifest.json", versions={"tensorrt": version})
    check_versions(tmp_path, "large")


@pytest.mark.parametrize(
    ("engine", "here", "message"),
    [
        pytest.param("torch", {"versions": {"torch": "2.14.0"}}, "PyTorch 2.13, this machine has 2.14", id="PyTorch"),
        pytest.param("torch", {"gpus": ["8.6"]}, "for compute capability 9.0, this machine has 8.6", id="GPU of torch"),
        pytest.param("tensorrt", {"gpus": ["10.0", "8.9"]}, "9.0, this machine has 10.0, 8.9", id="GPUs of TensorRT"),
    ],
)
def test_another_pytorch_or_gpu_is_refused_with_both(
    tmp_path: Path, machine: SimpleNamespace, engine: str, here: dict[str, Any], message: str
) -> None:
    write_manifest(tmp_path, engine=engine, compute_capability="9.0")
    check_versions(tmp_path)
    vars(machine).update(here)
    with pytest.raises(CodetrError, match=f"the engine codetr in .* {re.escape(message)}; build it again here"):
        check_versions(tmp_path)


NOTHING: dict[str, Any] = {"versions": {}, "gpus": []}
OTHER: dict[str, Any] = {"versions": {"tensorrt": "10.15.1.29", "torch": "2.14.0"}, "gpus": ["8.6"]}


@pytest.mark.parametrize(
    ("changes", "here"),
    [
        pytest.param({}, {"gpus": ["8.6"]}, id="a manifest of an earlier build: no compute capability"),
        pytest.param({"engine": "torch", "compute_capability": None}, {"gpus": ["8.6"]}, id="a package for the CPU"),
        pytest.param({"engine": "torch"}, {"versions": {"torch": "2.13.1+cpu"}}, id="a later patch of PyTorch"),
        pytest.param({"compute_capability": "9.0"}, {"gpus": ["8.6", "9.0"]}, id="one of several GPUs"),
        pytest.param(
            {"compute_capability": "9.0", "hardware_compatible": True}, {"gpus": ["8.6"]}, id="a portable plan"
        ),
        pytest.param({"engine": "onnx", "compute_capability": "9.0"}, OTHER, id="ONNX depends on neither"),
        pytest.param({"engine": None}, OTHER, id="an unknown engine"),
        pytest.param({"versions": {}}, OTHER, id="a plan of unknown version"),
        pytest.param({"engine": "torch", "versions": {}}, OTHER, id="a package of unknown version"),
        pytest.param({"compute_capability": "9.0"}, NOTHING, id="no TensorRT in Python: the server has its own"),
        pytest.param({"engine": "torch", "compute_capability": "9.0"}, NOTHING, id="nothing known of this machine"),
    ],
)
def test_what_is_not_judged(
    tmp_path: Path, machine: SimpleNamespace, changes: dict[str, Any], here: dict[str, Any]
) -> None:
    write_manifest(tmp_path, **changes)
    vars(machine).update(here)
    check_versions(tmp_path)


OLD = "mmx sse sse2 avx avx2 fma"
NEW = f"{OLD} avx512f avx512_vnni amx_tile"


@pytest.fixture
def processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives this machine a made-up CPU: the flags of each core, and its architecture."""

    def become(*cores: str, machine: str = "x86_64", key: str = "flags\t\t") -> None:
        core = "processor\t: {}\nmodel name\t: Some CPU\n{}: {}\nvmx flags\t: ept\n\n"
        text = "".join(core.format(i, key, flags) for i, flags in enumerate(cores))
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(platform, "machine", lambda: machine)

    return become


def test_a_cpu_that_lacks_instructions_is_refused_by_name(
    tmp_path: Path, machine: SimpleNamespace, processor: Callable[..., None]
) -> None:
    processor(NEW)
    write_manifest(tmp_path, engine="torch", cpu=cpu())
    check_versions(tmp_path)
    processor(OLD)
    message = (
        r"the engine codetr in .* was built for a CPU with amx_tile, avx512_vnni, avx512f \(Some CPU\), which this "
        r"machine's \(Some CPU\) lacks; build it again here"
    )
    with pytest.raises(CodetrError, match=message):
        check_versions(tmp_path)


def test_a_cpu_of_another_architecture_is_refused(
    tmp_path: Path, machine: SimpleNamespace, processor: Callable[..., None]
) -> None:
    processor("asimd sve bf16", machine="aarch64", key="Features\t")
    assert cpu() == {"machine": "aarch64", "name": "Some CPU", "features": ["asimd", "bf16", "sve"]}
    write_manifest(tmp_path, engine="torch", cpu=cpu())
    check_versions(tmp_path)
    processor(NEW)
    with pytest.raises(CodetrError, match="for processors of aarch64, this machine has x86_64; build it again here"):
        check_versions(tmp_path)


@pytest.mark.parametrize(
    ("changes", "cores"),
    [
        pytest.param({"cpu": {"machine": "x86_64", "features": OLD.split()}}, [NEW], id="a CPU that can do more"),
        pytest.param({}, [OLD], id="a manifest of an earlier build"),
        pytest.param({"cpu": None}, [OLD], id="a package for a GPU"),
        pytest.param({"cpu": {"machine": "x86_64", "features": []}}, [OLD], id="built where nothing was known"),
        pytest.param({"cpu": {"machine": "x86_64", "features": NEW.split()}}, [], id="nothing known of this machine"),
        pytest.param(
            {"engine": "onnx", "cpu": {"machine": "x86_64", "features": NEW.split()}}, [OLD], id="ONNX chooses itself"
        ),
    ],
)
def test_cpus_that_are_not_judged(
    tmp_path: Path, machine: SimpleNamespace, processor: Callable[..., None], changes: dict[str, Any], cores: list[str]
) -> None:
    processor(*cores)
    write_manifest(tmp_path, **{"engine": "torch", **changes})
    check_versions(tmp_path)


def test_only_what_compilers_use_of_all_cores_is_recorded(processor: Callable[..., None]) -> None:
    processor(f"{NEW} rtm msr hypervisor avx_vnni", f"{NEW} rtm")
    assert cpu() == {"machine": "x86_64", "name": "Some CPU", "features": sorted(NEW.split())}


def test_a_machine_without_cpuinfo_has_no_known_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "absent")
    assert cpu()["features"] == []


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        pytest.param("printf '9.0\\n8.9\\n9.0\\n'", ["8.9", "9.0"], id="several GPUs"),
        pytest.param("echo '[N/A]'", [], id="a GPU that does not tell"),
        pytest.param("echo 'NVIDIA-SMI 470.1 has failed'; exit 9", [], id="no driver"),
        pytest.param(None, [], id="no nvidia-smi"),
    ],
)
def test_compute_capabilities_come_from_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, expected: list[str]
) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compute_capabilities() == expected
