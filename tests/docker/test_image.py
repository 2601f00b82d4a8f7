"""What can be said of the image without building it."""

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from codetr.cli import app
from demo import WEIGHTS
from serving.errors import CodetrError
from serving.launch import ServerOptions

ROOT = Path(__file__).resolve().parents[2]
INSTRUCTIONS = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip  # a set of words
FOLDERS = ("builder", "clients", "codetr", "model_repository", "perf", "plugin_src", "serving")
SOURCES = {".cpp", ".cu", ".h", ".jpg", ".pbtxt", ".py", ".txt"}


def instructions():
    """(instruction, argument) of every logical line."""
    text = (ROOT / "Dockerfile.triton").read_text(encoding="utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


@pytest.fixture
def version():
    spec = importlib.util.spec_from_file_location("tensorrt_version", ROOT / "docker" / "tensorrt_version.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the linter's package has no other wheels")
def test_the_linter_finds_nothing():
    """hadolint's rules and, within RUN, ShellCheck's."""
    linter = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([linter, "--no-color", ROOT / "Dockerfile.triton"], capture_output=True, text=True)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_every_line_is_an_instruction():
    assert {name for name, _ in instructions()} <= INSTRUCTIONS


def test_both_stages_are_of_one_pinned_release():
    images = [argument.split()[0] for name, argument in instructions() if name == "FROM"]
    assert len(images) == 2
    assert all(image.endswith(":${NVIDIA_RELEASE}-py3") for image in images)


def test_server_runs_without_root_and_tells_its_health():
    last = dict(instructions())
    assert last["USER"] == "10001"
    assert any("useradd --create-home --uid 10001" in argument for name, argument in instructions() if name == "RUN")
    command = json.loads(last["HEALTHCHECK"].split("CMD")[1])
    assert command[:3] == ["codetr", "status", "--check"]
    checked = typer.main.get_command(app).commands["status"].make_context("status", command[2:])  # type: ignore[attr-defined]
    limit = float(re.search(r"--timeout=(\d+)s", last["HEALTHCHECK"])[1])
    assert checked.params["timeout"] < limit  # or Docker ends it before it can say why
    assert not any(name == "USER" and argument == "root" for name, argument in instructions())


def test_the_packages_stay_in_their_folder():
    """Installed editable, they are import names there and not in the image's site-packages."""
    (install,) = [argument for name, argument in instructions() if name == "RUN" and "pip install" in argument]
    ours = [word.strip('"') for word in re.findall(r"\S*/opt/codetr\S*", install)]
    assert ours == ["/opt/codetr/clients", "/opt/codetr[build,perf]"]
    assert install.count(" -e ") == len(ours)


def copied():
    """The sources of every COPY from this folder."""
    copies = [argument for name, argument in instructions() if name == "COPY" and "--from" not in argument]
    return [source for argument in copies for source in argument.split()[:-1]]


def test_copied_files_exist():
    assert copied()
    assert all((ROOT / source).exists() for source in copied())


def ignored(path):
    """Whether .dockerignore keeps `path` out: the last pattern that matches it or a folder above it decides."""
    decision = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#") and matches(pattern.lstrip("!").strip("/"), path):
            decision = not pattern.startswith("!")
    return decision


def matches(pattern, path):
    """Go's filepath.Match with Docker's `**`: any number of folders, also none."""
    assert not set(pattern) & set("[]\\"), "this test reads no character classes and no escapes"
    parts = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.findall(r"\*\*/|\*\*|.", pattern)
    expression = "".join(parts.get(token, re.escape(token)) for token in tokens)
    return re.fullmatch(f"{expression}(/.*)?", path) is not None


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(".git/config", id="history"),
        pytest.param(".env", id="secrets"),
        pytest.param("weights/X.pth", id="weights of docs/gpu.md"),
        pytest.param("X.safetensors", id="weights at the root"),
        pytest.param("demo/weights/mine.safetensors", id="own weights beside the demo's"),
        pytest.param("builder/weights/X.pth", id="weights within a package"),
        pytest.param("models/codetr_detector/1/model.plan", id="repository of docs/gpu.md"),
        pytest.param("repositories/swin_l/codetr_detector/1/model.onnx", id="repository of the README"),
        pytest.param("model_repository/codetr_detector/1/model.plan", id="plan among the templates"),
        pytest.param("model_repository/codetr_detector/1/model.onnx.data", id="weights of an ONNX file"),
        pytest.param("model_repository/codetr_detector/1/model.pt2", id="AOTInductor package"),
        pytest.param("runs/demo/detections.json", id="runs"),
        pytest.param("build/plugin/libcodetr_plugin.so", id="plugin built here"),
        pytest.param("plugin_src/build/CMakeCache.txt", id="plugin built in its folder"),
        pytest.param("perf/results/load/results.json", id="measurements"),
        pytest.param(".venv/bin/python", id="environment"),
        pytest.param(".triton/pytriton/pytriton/tritonserver/bin/tritonserver", id="server"),
        pytest.param(".mypy_cache/3.11/builder.data.json", id="mypy's cache"),
        pytest.param("builder/.ruff_cache/CACHEDIR.TAG", id="a cache within a package"),
        pytest.param("builder/__pycache__/build.cpython-311.pyc", id="byte code"),
        pytest.param("tests/docker/test_image.py", id="tests"),
    ],
)
def test_stays_out_of_the_image(path):
    assert ignored(path)


def test_what_the_image_is_built_from_goes_in():
    sources = [path for name in FOLDERS for path in (ROOT / name).rglob("*.*") if path.suffix in SOURCES]
    files = {str(path.relative_to(ROOT)) for path in sources}
    files |= {"LICENSE", "README.md", "clients/LICENSE", "clients/README.md", "clients/pyproject.toml"}
    files |= {"docker/entrypoint.sh", "hatch_build.py", "pyproject.toml"}
    files |= {str(path.relative_to(ROOT)) for path in WEIGHTS.values()}
    files |= {source for source in copied() if source != "."}
    assert {file for file in files if ignored(file)} == set()
    assert {file for file in files if not (ROOT / file).exists()} == set()


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*", "a/b", True),
        ("*.pth", "a/b.pth", False),
        ("**/*.pth", "b.pth", True),
        ("**/*.pth", "a/c/b.pth", True),
        ("**/build", "builder/pipeline/build.py", False),
        ("a/?", "a/b/c", True),
        ("a", "ab", False),
    ],
)
def test_patterns_mean_what_docker_documents(pattern, path, expected):
    assert matches(pattern, path) is expected


def run_entrypoint(tmp_path, *arguments, **environment):
    """The command line that the entrypoint gives to codetr."""
    fake = tmp_path / "codetr"
    fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    fake.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment}
    command = ["sh", str(ROOT / "docker" / "entrypoint.sh"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("arguments", "http_port", "triton_options"),
    [
        pytest.param((), 8000, (), id="no command"),
        pytest.param(("serve",), 8000, (), id="no options"),
        pytest.param(("serve", "-v", "--http-port", "9000"), 9000, (), id="options of codetr serve"),
        pytest.param(
            ("serve", "--", "--log-verbose=1", "--id=a b"), 8000, ("--log-verbose=1", "--id=a b"), id="of tritonserver"
        ),
        pytest.param(
            ("serve", "-v", "--http-port=9000", "--", "--log-verbose=1"), 9000, ("--log-verbose=1",), id="both"
        ),
        pytest.param(("serve", "--"), 8000, (), id="nothing behind the separator"),
    ],
)
def test_serve_listens_on_every_network_with_the_operators_key(
    tmp_path, monkeypatch, arguments, http_port, triton_options
):
    started = []

    def start(options, on_log):
        started.append(options)
        raise CodetrError("not here")

    monkeypatch.setattr("codetr.serve.start_server", start)
    monkeypatch.setenv("CODETR_ADMIN_KEY", "secret")
    words = run_entrypoint(tmp_path, *arguments)
    CliRunner().invoke(app, words)
    (options,) = started
    assert options == ServerOptions(
        Path("/models"), "0.0.0.0", http_port=http_port, extra=triton_options, admin_key="secret"
    )
    assert not options.listen.is_loopback  # so the statistics want the key too


def test_without_a_key_the_start_makes_its_own(monkeypatch):
    started = []
    monkeypatch.setattr("codetr.serve.start_server", lambda options, on_log: started.append(options) or 1 / 0)
    monkeypatch.setenv("CODETR_ADMIN_KEY", "")
    CliRunner().invoke(app, ["serve", "--repository", "/models"])
    assert started[0].admin_key is None


def test_other_commands_pass_through(tmp_path):
    assert run_entrypoint(tmp_path, "detect", "a picture.jpg") == ["detect", "a picture.jpg"]


def test_version_number_is_decoded(version):
    assert version.decode(110100) == "11.1.0"
    assert version.decode(101602) == "10.16.2"


def test_version_mismatch_names_both(version):
    assert version.fault("11.1.0", {"libnvinfer": "11.1.0", "the Python package": "11.1.0"}) is None
    problem = version.fault("11.1.0", {"libnvinfer": "11.1.0", "the Python package": "11.0.0"})
    assert "11.1.0" in problem
    assert "the Python package is 11.0.0" in problem
    assert "libnvinfer" not in problem
