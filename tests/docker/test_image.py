"""What can be said of the image without building it."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTRUCTIONS = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "USER", "VOLUME", "WORKDIR",
}  # fmt: skip  # a set of words


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
    assert "/v2/health/ready" in last["HEALTHCHECK"]
    assert not any(name == "USER" and argument == "root" for name, argument in instructions())


def test_copied_files_exist():
    sources = [
        argument.split()[:-1] for name, argument in instructions() if name == "COPY" and "--from" not in argument
    ]
    assert all((ROOT / source).exists() for group in sources for source in group)


def run_entrypoint(tmp_path, *arguments, **environment):
    """The command line that the entrypoint gives to codetr."""
    fake = tmp_path / "codetr"
    fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    fake.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment}
    command = ["sh", str(ROOT / "docker" / "entrypoint.sh"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def test_serve_shuts_the_endpoints_that_change_the_server(tmp_path):
    words = run_entrypoint(tmp_path, "serve", "--verbose", CODETR_ADMIN_KEY="secret")
    apis = "model-repository,shared-memory,statistics,trace,logging"
    assert words[: words.index("--")] == ["serve", "--repository", "/models", "--host", "0.0.0.0", "--verbose"]
    assert words[words.index("--") + 1 :] == [
        f"--http-restricted-api={apis}:codetr-admin=secret",
        f"--grpc-restricted-protocol={apis}:codetr-admin=secret",
    ]


def test_without_a_key_each_start_has_its_own(tmp_path):
    first, second = (run_entrypoint(tmp_path)[-1].rsplit("=", 1)[1] for _ in range(2))
    assert len(first) == 48
    assert first != second


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
