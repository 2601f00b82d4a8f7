from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from serving.errors import CodetrError
from serving.shared_memory import check_shared_memory

# Two instances, each of 1 MiB at its start and, full, of 8 images of 4 MiB encoded and 3 MiB decoded.
CONFIG = """
max_batch_size: 8
input { name: "image" data_type: TYPE_STRING dims: 1 }
output { name: "images" data_type: TYPE_UINT8 dims: [ 1024, 1024, 3 ] }
instance_group { count: 2 }
backend: "python"
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, text in (("step", CONFIG), ("plan", CONFIG.replace('"python"', '"tensorrt"')), ("all", 'name: "all"')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text(text)
    return tmp_path


def with_room(mib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(f_bavail=round(mib * 1024), f_blocks=64 * 1024, f_frsize=1024)
    monkeypatch.setattr(os, "statvfs", lambda path: state)


def test_room_for_full_batches_is_enough(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_room(114, monkeypatch)
    assert check_shared_memory(repository) is None


@pytest.mark.parametrize(
    ("group", "gpus", "mib"),
    [
        ("count: 2 kind: KIND_GPU", 3, 6 * 57),
        ("count: 2", 3, 6 * 57),  # Triton takes the GPUs that there are
        ("count: 2 kind: KIND_GPU gpus: [ 0, 2 ]", 3, 4 * 57),
        ("count: 2 kind: KIND_CPU", 3, 2 * 57),
        ("count: 2 kind: KIND_GPU", 1, 2 * 57),
    ],
)
def test_a_group_has_its_count_on_each_gpu(
    group: str, gpus: int, mib: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "config.pbtxt").write_text(CONFIG.replace("count: 2", group))
    with_room(mib, monkeypatch)
    assert check_shared_memory(tmp_path, gpus=gpus) is None
    with_room(mib - 1, monkeypatch)
    note = check_shared_memory(tmp_path, gpus=gpus)
    assert note is not None
    assert f"full batches need about {mib}" in note


def test_less_is_a_line_with_what_to_do(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_room(60, monkeypatch)
    note = check_shared_memory(repository)
    assert note is not None
    assert "/dev/shm has 60 MiB free of 64; full batches need about 114" in note
    assert "docker run --shm-size 1g" in note


def test_too_little_to_start_is_refused(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_room(1.5, monkeypatch)
    with pytest.raises(CodetrError, match=r"has 2 MiB free of 64, and .* need 2 to start and about 114"):
        check_shared_memory(repository)


def test_a_repository_without_python_steps_needs_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_room(0, monkeypatch)
    assert check_shared_memory(tmp_path) is None


@pytest.mark.parametrize("text", ["input {", CONFIG.replace("count: 2", "count: 0x2")])
def test_a_configuration_that_is_not_understood_is_left_to_triton(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "config.pbtxt").write_text(text)
    with_room(1, monkeypatch)
    assert check_shared_memory(tmp_path) is None
