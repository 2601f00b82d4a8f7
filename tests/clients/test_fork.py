"""Clients before, after and beside a fork: each case in a Python of its own, which a hang cannot take along."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.clients.conftest import HANGS, Server

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

START = """
import asyncio, multiprocessing, os, sys
from codetr_client import AsyncCoDetrClient, CoDetrClient, CodetrError

url = sys.argv[1]

def in_child(work):
    # Return what work prints in a fork of this process.
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            text = str(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    os.wait()
    return os.read(read, 1000).decode()

def new():
    with CoDetrClient(url, timeout=200) as client:
        return len(client.detect(b"a"))

async def awaited():
    async with AsyncCoDetrClient(url, timeout=200) as client:
        return len(await client.detect(b"a"))
"""
REFUSED = "ClientStateError: this process is a fork of one that used gRPC, which does not work after a fork: use"


def run(server: Server, code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    done = subprocess.run(
        [sys.executable, "-c", START + code, server.url],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


USED = "client = CoDetrClient(url); client.detect(b'a')\n"
CHILDREN = """
def old():
    return len(client.detect(b"a"))

children = {"the parent's client": old, "a new one": new, "a new one of asyncio": lambda: asyncio.run(awaited())}
for state in ("open", "closed"):
    for name, child in children.items():
        print(state, name, in_child(child), sep="|")
    client.close()
    client = CoDetrClient(url)
print(len(client.detect(b"a")))
"""


def test_a_fork_answers_over_http_and_refuses_grpc(server: Server) -> None:
    *children, parent = run(server, USED + CHILDREN).splitlines()
    assert len(children) == 6
    for line in children:
        answer = line.split("|")[2]
        if server.protocol == "http":
            assert answer == "1", line
        else:
            assert answer.startswith(REFUSED), line
            assert "GRPC_ENABLE_FORK_SUPPORT=1" in answer
    assert parent == "1", "the parent goes on"
    peers = [seen.peer for seen in server.seen]
    if server.protocol == "http":
        assert len(set(peers)) == len(peers), "no two processes share a connection, nor two clients"


def test_grpc_works_in_a_fork_where_it_is_told_to(server: Server) -> None:
    printed = run(
        server,
        USED + "print(in_child(new), in_child(lambda: len(client.detect(b'a'))), len(client.detect(b'a')))",
        GRPC_ENABLE_FORK_SUPPORT="1",
    )
    assert printed.split() == ["1", "1", "1"]


def test_what_was_imported_but_not_used_works_in_a_fork(server: Server) -> None:
    printed = run(server, "import tritonclient.grpc\nprint(in_child(new), in_child(lambda: asyncio.run(awaited())))")
    assert printed.split() == ["1", "1"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not name threads")
@pytest.mark.parametrize("after", ["", "os.fork() or os._exit(0)\nos.wait()\n"])
def test_grpc_is_refused_in_a_fork_of_a_program_that_used_it_by_itself(server: Server, after: str) -> None:
    """Of 96 channels three hung there, in C and with Python's lock, so that no timeout could end it."""
    if server.protocol == "http":
        pytest.skip("gRPC only")
    others = (
        "import tritonclient.grpc as t\n"
        "other = t.InferenceServerClient(url.partition('://')[2])\n"
        "other.is_model_ready('codetr')\n"
    )
    for child in ("new", "lambda: asyncio.run(awaited())"):
        printed = run(server, others + after + f"print(in_child({child}))")
        assert printed.startswith(REFUSED), printed


def test_an_asyncio_client_of_the_parent_is_refused(server: Server) -> None:
    code = """
async def main():
    async with AsyncCoDetrClient(url) as client:
        await client.detect(b"a")

        def use():
            asyncio._set_running_loop(None)  # the fork happened within the loop
            asyncio.run(client.check())

        print(in_child(use))
        print(len(await client.detect(b"a")))

asyncio.run(main())
"""
    first, second = run(server, code).splitlines()
    assert first.startswith("ClientStateError: the client was made in the process that this one is a fork of")
    assert second == "1"


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_multiprocessing(server: Server, tmp_path, method: str) -> None:
    """With fork the parent has not used gRPC; with spawn it has."""
    script = tmp_path / "workers.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from codetr_client import CoDetrClient\n\n\n"
        "def work(url):\n"
        "    with CoDetrClient(url, timeout=200) as client:\n"
        "        return len(client.detect(b'a'))\n\n\n"
        "if __name__ == '__main__':\n"
        "    method, url = sys.argv[1:]\n"
        "    if method == 'spawn' or url.startswith('http'):\n"
        "        work(url)\n"
        "    with multiprocessing.get_context(method).Pool(2) as pool:\n"
        "        print(pool.map(work, [url] * 4))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), method, server.url], capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.stdout == "[1, 1, 1, 1]\n", done.stderr
