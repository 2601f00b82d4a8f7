from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from serving import binary
from serving.binary import Binary, find_tritonserver
from serving.errors import CodetrError


def test_missing_binary_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binary, "TRITON_FOLDER", tmp_path / ".triton")
    with pytest.raises(CodetrError, match=r"no tritonserver on PATH .*; run: python -m pip install .*nvidia-pytriton"):
        find_tritonserver()


def fake_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the wheel that the launcher looks for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binary, "TRITON_FOLDER", tmp_path / ".triton")
    wheel = tmp_path / ".triton" / "pytriton" / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        f"python_backend_stubs/{version}/triton_python_backend_stub",
    ):
        (wheel / name).parent.mkdir(parents=True, exist_ok=True)
        (wheel / name).write_text(name)
    return wheel


def test_the_wheels_server_runs_with_a_folder_of_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = fake_wheel(tmp_path, monkeypatch)
    before = sorted(wheel.parent.rglob("*"))
    found = find_tritonserver()
    assert found.path == wheel / "bin" / "tritonserver"
    (tmp_path / "private").mkdir()
    backends = found.link_backends(tmp_path / "private")
    assert backends is not None
    links = {path.name: path for path in (backends / "python").iterdir()}
    assert set(links) == {"libtriton_python.so", "triton_python_backend_utils.py", "triton_python_backend_stub"}
    assert all(path.is_symlink() and path.is_file() for path in links.values())
    assert sorted(wheel.parent.rglob("*")) == before  # it may lie where nothing can be written


def test_a_server_on_path_comes_first_and_knows_its_backends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wheel(tmp_path, monkeypatch)
    (tmp_path / "tritonserver").touch(mode=0o755)
    found = find_tritonserver()
    assert found.path == tmp_path / "tritonserver"
    assert found.link_backends(tmp_path) is None


def test_this_python_comes_first_on_path_and_its_library_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/theirs")
    environment = Binary(Path("/bin/true"), (), "/python/lib").environment(Path("/a python"))
    assert environment["PATH"] == "/a python:/usr/bin"
    assert environment["LD_LIBRARY_PATH"] == "/python/lib:/theirs"


def test_options_of_a_release_are_read_from_its_help(tmp_path: Path) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\nprintf '  --id <string>\\n\\tText of --id.\\n  --http-max-input-size <n>\\n' >&2\n")
    program.chmod(0o755)
    assert Binary(program, (), None).known_options() == {"id", "http-max-input-size"}
    assert Binary(tmp_path / "none", (), None).known_options() == frozenset()


def test_a_field_of_the_configuration_is_one_of_the_programs_schema(tmp_path: Path) -> None:
    program = tmp_path / "tritonserver"
    program.write_bytes(b"\x7fELF\0 other_field \x0a\x05steps\x18\x01\x0a\x0emax_queue_size\x18\x02")
    known = ["steps", "max_queue_size", "queue_size", "other_field", "max_queue"]
    assert [name for name in known if Binary(program, (), None).has_config_field(name)] == ["steps", "max_queue_size"]
    (tmp_path / "empty").touch()
    assert not Binary(tmp_path / "empty", (), None).has_config_field("steps")
    assert not Binary(tmp_path / "none", (), None).has_config_field("steps")


@pytest.mark.server
def test_the_installed_server_shows_its_fields() -> None:
    found = find_tritonserver()
    assert found.has_config_field("ensemble_scheduling")
    assert found.has_config_field("default_timeout_microseconds")
    assert not found.has_config_field("no_such_field")


def test_numpy_2_is_refused_with_the_wheels_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wheel(tmp_path, monkeypatch)
    monkeypatch.setattr(metadata, "version", lambda name: "2.3.1")
    with pytest.raises(CodetrError, match=r"numpy 2.3.1 corrupts .*; run: python -m pip install numpy==1.26.4"):
        find_tritonserver()


def test_a_python_without_a_stub_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = fake_wheel(tmp_path, monkeypatch)
    next((wheel / "python_backend_stubs").rglob("*stub")).unlink()
    with pytest.raises(CodetrError, match=r"no Python backend for Python 3\.\d+; use Python 3.10 to 3.12"):
        find_tritonserver()
