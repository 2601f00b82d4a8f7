"""The client in an environment of its own: its own dependencies, NumPy 2, the newest Python here, a real server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from codetr_client import CoDetrClient
from perf.pictures import encoded_picture
from serving.launch import TritonServer

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-client/bin/python"  # `make setup` makes it

DETECT = """
import asyncio, importlib, json, pkgutil, sys
import codetr_client
from codetr_client import AsyncCoDetrClient, CoDetrClient, draw

for module in pkgutil.iter_modules(codetr_client.__path__):
    importlib.import_module("codetr_client." + module.name)
picture, url, protocol = sys.argv[1:]
with CoDetrClient(url, protocol=protocol) as client:
    client.check()
    found = client.detect(picture)

async def awaited():
    async with AsyncCoDetrClient(url, protocol=protocol) as client:
        return await client.detect(picture)

assert asyncio.run(awaited()).to_json() == found.to_json()
import numpy
print(json.dumps({"found": found.to_json(), "size": draw(picture, found).size, "numpy": numpy.__version__}))
"""


def run(*arguments: str) -> str:
    # -I: neither this project's folder nor the user's packages are importable
    done = subprocess.run(
        [str(PYTHON), "-I", "-W", "error", *arguments], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed() -> None:
    """The client as it is now, in the environment that holds only what it asked for."""
    assert PYTHON.exists(), "no environment for the client alone: make setup"
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--force-reinstall")
    run("-W", "default", "-m", "pip", "install", *options, str(ROOT / "clients"))


pytestmark = [pytest.mark.server, pytest.mark.usefixtures("installed")]


def test_pip_shows_one_package_and_its_dependencies() -> None:
    head, files = run("-W", "default", "-m", "pip", "show", "-f", "codetr-client").split("Files:\n")
    assert "Requires: h11, numpy, pillow, tritonclient\n" in head
    folders = {line.strip().split("/")[0] for line in files.splitlines()}
    assert {name for name in folders if not name.endswith(".dist-info")} == {"codetr_client"}
    run("-W", "default", "-m", "pip", "check")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_it_detects_what_the_application_detects(server: TritonServer, tmp_path: Path, protocol: str) -> None:
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(encoded_picture(320, 240))
    url = server.grpc_url if protocol == "grpc" else server.http_url
    answer = json.loads(run("-c", DETECT, str(picture), url, protocol))
    with CoDetrClient(server.grpc_url) as client:
        expected = client.detect(picture)
    assert len(expected) > 0
    assert answer["found"] == expected.to_json()
    assert answer["size"] == [320, 240]
    assert np.lib.NumpyVersion(answer["numpy"]) >= "2.0.0"
