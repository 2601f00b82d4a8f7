"""Which GPUs a server gets, with a stand-in for nvidia-smi."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from serving.errors import CodetrError
from serving.gpus import VISIBLE, ServerGpus, check_gpus, installed_gpus, visible_devices
from serving.manifest import manifest_path

Machine = Callable[[Sequence[str]], None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this a machine with GPUs of these compute capabilities."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(capabilities: Sequence[str]) -> None:
        lines = [f"{i}, GPU-{i}{i}-a, {each}, NVIDIA No. {i}" for i, each in enumerate(capabilities)]
        program = folder / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
        program.chmod(0o755)

    return install


@pytest.mark.parametrize(
    ("wanted", "environment", "devices"),
    [
        pytest.param("all", {}, "GPU-00-a,GPU-11-a", id="all"),
        pytest.param("1", {}, "GPU-11-a", id="one"),
        pytest.param("1,0", {}, "GPU-11-a,GPU-00-a", id="in the order that is named"),
        pytest.param("1", {VISIBLE: "5, 7,9"}, "7", id="of those that are visible"),
        pytest.param("0", {VISIBLE: "MIG-abc"}, "MIG-abc", id="a slice"),
        pytest.param("all", {VISIBLE: "3,1"}, "3,1", id="all that are visible"),
    ],
)
def test_numbers_are_those_of_nvidia_smi_or_of_what_is_visible(
    machine: Machine, wanted: str, environment: dict[str, str], devices: str
) -> None:
    machine(["9.0", "9.0"])
    assert visible_devices(wanted, environment) == devices


@pytest.mark.parametrize(
    ("wanted", "environment", "message"),
    [
        pytest.param("2", {}, r"there is no GPU 2; nvidia-smi lists 0 \(NVIDIA No. 0\), 1 \(", id="not there"),
        pytest.param("0,1,2", {}, "there is no GPU 2", id="more than there are"),
        pytest.param("1", {VISIBLE: "4"}, r"there is no GPU 1; CUDA_VISIBLE_DEVICES names 0 \(4\)$", id="not visible"),
        pytest.param("0", {VISIBLE: ""}, "CUDA_VISIBLE_DEVICES names no GPU here", id="hidden"),
        pytest.param("0,0", {}, "GPU 0 is named twice", id="twice"),
        pytest.param("", {}, "expected numbers such as 0,1, or all", id="nothing"),
        pytest.param("-1", {}, "expected numbers such as 0,1, or all", id="negative"),
        pytest.param("0,", {}, "expected numbers such as 0,1, or all", id="a comma too many"),
        pytest.param("cuda:0", {}, "expected numbers such as 0,1, or all", id="PyTorch's name"),
    ],
)
def test_what_names_no_gpus_of_this_machine_is_refused(
    machine: Machine, wanted: str, environment: dict[str, str], message: str
) -> None:
    machine(["9.0", "9.0"])
    with pytest.raises(CodetrError, match=message):
        visible_devices(wanted, environment)


def test_a_machine_without_gpus_says_so(machine: Machine) -> None:
    assert installed_gpus() == []
    with pytest.raises(CodetrError, match="gpus all: nvidia-smi lists no GPU here; leave it out"):
        visible_devices("all", {})


def repository_of(folder: Path, **manifest: object) -> Path:
    (folder / "codetr_detector").mkdir(parents=True)
    manifest_path(folder).write_text(json.dumps({"files": {}, **manifest}))
    return folder


def test_an_engine_for_cpus_gets_none(machine: Machine, tmp_path: Path) -> None:
    machine(["9.0"])
    repository = repository_of(tmp_path / "r", engine="onnx", device="cpu")
    assert check_gpus(repository, ["codetr"], None, {}) == ServerGpus(None, 1)
    with pytest.raises(CodetrError, match=r"gpus 0: no engine of .* runs on a GPU; leave it out"):
        check_gpus(repository, ["codetr"], "0", {})


def test_an_engine_runs_on_gpus_that_it_was_built_for(machine: Machine, tmp_path: Path) -> None:
    machine(["8.9", "9.0", "9.0"])
    repository = repository_of(tmp_path / "r", engine="torch", device="cuda", compute_capability="9.0")
    fault = r"built for compute capability 9\.0, and GPU 0 \(NVIDIA No\. 0\) has 8\.9; "
    for wanted, environment, advice in (
        (None, {}, "choose the GPUs 1,2"),
        ("all", {}, "choose the GPUs 1,2"),
        ("0,2", {}, "choose the GPUs 2"),
        (None, {VISIBLE: "0,1"}, f"take it out of {VISIBLE}"),
    ):
        with pytest.raises(CodetrError, match=f"{fault}{advice}$"):
            check_gpus(repository, ["codetr"], wanted, environment)
    assert check_gpus(repository, ["codetr"], "1,2", {}) == ServerGpus("GPU-11-a,GPU-22-a", 2)
    assert check_gpus(repository, ["codetr"], None, {VISIBLE: "2"}) == ServerGpus(None, 1)
    fits_all = repository_of(tmp_path / "s", engine="tensorrt", compute_capability="9.0", hardware_compatible=True)
    assert check_gpus(fits_all, ["codetr"], None, {}) == ServerGpus(None, 3)
