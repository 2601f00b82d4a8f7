from __future__ import annotations

import json
import socket
import sys
from importlib import metadata
from pathlib import Path

import pytest

from serving import launch
from serving.contract import DETECTOR, ENSEMBLE, PLUGIN_LIBRARY, POSTPROCESS, PREPROCESS, model_name
from serving.errors import CodetrError
from serving.launch import ServerOptions, check_repository, find_tritonserver, free_ports, is_warning, start_server
from serving.manifest import manifest_path, sha256


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The shape of a repository, with no engine listed."""
    for model in (ENSEMBLE, PREPROCESS, DETECTOR, POSTPROCESS):
        (tmp_path / model / "1").mkdir(parents=True)
        (tmp_path / model / "config.pbtxt").touch()
    manifest_path(tmp_path).write_text('{"files": {}}')
    return tmp_path


def add_engine(repository: Path, name: str, plugin: str | None = None, **manifest: object) -> None:
    """Add an engine, with `plugin` as the content of its TensorRT plugin and further entries of its manifest."""
    for model in (ENSEMBLE, PREPROCESS, DETECTOR, POSTPROCESS):
        (repository / model_name(model, name) / "1").mkdir(parents=True, exist_ok=True)
        (repository / model_name(model, name) / "config.pbtxt").touch()
    files = {}
    if plugin is not None:
        path = f"{model_name(DETECTOR, name)}/1/{PLUGIN_LIBRARY}"
        (repository / path).write_text(plugin)
        files[path] = sha256(repository / path)
    manifest_path(repository, name).write_text(json.dumps({"files": files, **manifest}))


def test_missing_repository_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match=r"no repository at .*nowhere; write one there with `codetr build"):
        check_repository(tmp_path / "nowhere")


@pytest.mark.parametrize("part", ["codetr/1", "codetr_detector/config.pbtxt", "codetr_detector/manifest.json"])
def test_incomplete_repository_names_the_part(repository: Path, part: str) -> None:
    check_repository(repository)
    path = repository / part
    path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(CodetrError, match=f"is incomplete: {part} is missing; build it again"):
        check_repository(repository)


@pytest.mark.parametrize("part", ["large/1", "large_postprocess/config.pbtxt", "large_detector/manifest.json"])
def test_every_engine_must_be_complete(repository: Path, part: str) -> None:
    add_engine(repository, "large")
    check_repository(repository)
    path = repository / part
    path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(CodetrError, match=f"is incomplete: {part} is missing; build it again"):
        check_repository(repository)


def test_folders_that_are_no_models_are_named(repository: Path) -> None:
    (repository / ".repository.abcdefgh").mkdir()
    (repository / "photos").mkdir()
    (repository / "another_model").mkdir()
    (repository / "another_model" / "config.pbtxt").touch()
    with pytest.raises(CodetrError, match=r"that are no models: \.repository\.abcdefgh, photos; .* remove them"):
        check_repository(repository)


def test_every_engines_files_are_compared_with_their_hashes(repository: Path) -> None:
    add_engine(repository, "large", plugin="built")
    check_repository(repository)
    (repository / "large_detector" / "1" / PLUGIN_LIBRARY).write_text("changed")
    with pytest.raises(CodetrError, match=rf"{PLUGIN_LIBRARY} is not the file that was built.*, manifest\.json says"):
        check_repository(repository)


def tensorrt_options(repository: Path) -> list[str]:
    """The options of the TensorRT backend, as the server would be started."""
    binary = launch._Binary(Path("tritonserver"), None, None)
    command = launch._command(binary, ServerOptions(repository))
    return [word for word in command if word.startswith("--backend-config=tensorrt,")]


def test_the_plugin_of_the_plans_is_loaded_once(repository: Path) -> None:
    assert tensorrt_options(repository) == []
    add_engine(repository, "codetr", plugin="built")
    add_engine(repository, "large", plugin="built")
    library = repository / "codetr_detector" / "1" / PLUGIN_LIBRARY
    assert tensorrt_options(repository) == [f"--backend-config=tensorrt,plugins={library}"]


def test_the_plugin_may_lie_beside_any_engine(repository: Path) -> None:
    add_engine(repository, "large", plugin="built")
    library = repository / "large_detector" / "1" / PLUGIN_LIBRARY
    assert tensorrt_options(repository) == [f"--backend-config=tensorrt,plugins={library}"]


def test_a_plan_that_the_python_backend_runs_loads_its_own_plugin(repository: Path) -> None:
    add_engine(repository, "codetr", plugin="built")
    add_engine(repository, "old", plugin="built for TensorRT 8", plan_backend="python")
    library = repository / "codetr_detector" / "1" / PLUGIN_LIBRARY
    assert tensorrt_options(repository) == [f"--backend-config=tensorrt,plugins={library}"]


def test_plans_of_different_plugins_cannot_be_served_together(repository: Path) -> None:
    add_engine(repository, "codetr", plugin="built in May")
    add_engine(repository, "large", plugin="built in June")
    with pytest.raises(
        CodetrError, match=r"engines codetr, large of .* come with different builds of libcodetr_plugin"
    ):
        tensorrt_options(repository)


def test_version_compatible_plans_are_allowed_where_there_are_any(repository: Path) -> None:
    add_engine(repository, "large", version_compatible=False)
    assert tensorrt_options(repository) == []
    add_engine(repository, "large", version_compatible=True)
    assert tensorrt_options(repository) == ["--backend-config=tensorrt,version-compatible=true"]


@pytest.mark.parametrize("taken", ["http", "grpc", "metrics"])
def test_taken_port_is_named_with_its_option(repository: Path, taken: str) -> None:
    names = ("http_port", "grpc_port", "metrics_port")
    options = ServerOptions(repository, **dict(zip(names, free_ports(3), strict=True)))
    port = getattr(options, f"{taken}_port")
    expected = pytest.raises(CodetrError, match=rf"port {port} of 127.0.0.1 is taken .*--{taken}-port")
    with socket.create_server(("127.0.0.1", port)), expected:
        start_server(options)


def test_unusable_address_is_named(repository: Path) -> None:
    names = ("http_port", "grpc_port", "metrics_port")
    options = ServerOptions(repository, "192.0.2.1", **dict(zip(names, free_ports(3), strict=True)))  # RFC 5737
    with pytest.raises(CodetrError, match=r"of 192.0.2.1 cannot be used \(Cannot assign requested address\)"):
        start_server(options)


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        pytest.param((8000, 8000, 8002), "expected three different ports, got 8000, 8000, 8002", id="the same twice"),
        pytest.param((0, 8001, 8002), "HTTP port: expected 1..65535, got 0", id="zero"),
        pytest.param((8000, 8001, 70000), "metrics port: expected 1..65535, got 70000", id="too large"),
    ],
)
def test_impossible_ports_are_refused(tmp_path: Path, ports: tuple[int, int, int], message: str) -> None:
    with pytest.raises(CodetrError, match=message):
        ServerOptions(tmp_path, "127.0.0.1", *ports)


def test_every_network_is_reached_at_loopback(tmp_path: Path) -> None:
    assert ServerOptions(tmp_path, "0.0.0.0").address == "127.0.0.1"
    assert ServerOptions(tmp_path, "10.1.2.3").address == "10.1.2.3"


def test_missing_binary_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(launch, "TRITON_FOLDER", tmp_path / ".triton")
    with pytest.raises(CodetrError, match=r"no tritonserver on PATH .*; run: python -m pip install .*nvidia-pytriton"):
        find_tritonserver()


def fake_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the wheel that the launcher looks for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(launch, "TRITON_FOLDER", tmp_path / ".triton")
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
    for _ in range(2):  # the second finds the links made
        binary = find_tritonserver()
        assert binary.path == wheel / "bin" / "tritonserver"
        assert binary.backends is not None
        links = {path.name: path for path in (binary.backends / "python").iterdir()}
        assert set(links) == {"libtriton_python.so", "triton_python_backend_utils.py", "triton_python_backend_stub"}
        assert all(path.is_symlink() and path.is_file() for path in links.values())


def test_a_server_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wheel(tmp_path, monkeypatch)
    (tmp_path / "tritonserver").touch(mode=0o755)
    binary = find_tritonserver()
    assert (binary.path, binary.backends) == (tmp_path / "tritonserver", None)


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


def test_warnings_are_told_from_notes() -> None:
    assert is_warning('W1121 03:51:04.799670 15780 pinned_memory_manager.cc:170] "failed"')
    assert is_warning('E1121 03:51:04.823490 15780 main.cc:245] "failed"')
    assert not is_warning('I1121 03:51:04.820804 15780 server.cc:604] ""')
    assert not is_warning("| codetr | 1 | READY |")
