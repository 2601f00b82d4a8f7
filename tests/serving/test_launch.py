from __future__ import annotations

import re
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from serving import launch, runtime
from serving.binary import Binary
from serving.errors import CodetrError
from serving.launch import ServerOptions, TritonServer, free_ports, running_server, start_server
from serving.options import PROTECTED
from serving.runtime import running_servers
from serving.stubs import LoadingStubs

PORTS = ("http_port", "grpc_port", "metrics_port")


@pytest.fixture(autouse=True)
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared memory of the test's own."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(runtime, "SHARED_MEMORY", folder)
    return folder


def some_options(repository: Path, **options: object) -> ServerOptions:
    return ServerOptions(repository, **dict(zip(PORTS, free_ports(3), strict=True)), **options)


@pytest.mark.parametrize("taken", ["http", "grpc", "metrics"])
def test_taken_port_is_named_with_its_option(repository: Path, taken: str) -> None:
    options = some_options(repository)
    port = getattr(options, f"{taken}_port")
    expected = pytest.raises(CodetrError, match=rf"port {port} of 127.0.0.1 is taken .*--{taken}-port")
    with socket.create_server(("127.0.0.1", port)), expected:
        start_server(options)


def test_unusable_address_is_named(repository: Path) -> None:
    with pytest.raises(CodetrError, match=r"192.0.2.1 is no address of this machine"):  # RFC 5737
        start_server(some_options(repository, host="192.0.2.1"))


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Puts a shell script in the place of tritonserver."""

    def put(script: str) -> None:
        program = tmp_path / "a program"
        program.write_text(f'#!/bin/bash\n[ "$1" != --help ] || exit 0\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setattr(launch, "find_tritonserver", lambda: Binary(program, (), None))

    return put


def test_a_server_gets_what_it_needs_and_leaves_nothing(
    repository: Path, pretend: object, shared_memory: Path, tmp_path: Path
) -> None:
    arguments = tmp_path / "arguments"
    pretend(f"printf '%s\\n' \"$@\" > '{arguments}.new'; mv '{arguments}.new' '{arguments}'; echo started; sleep 600")
    lines: list[str] = []
    server = start_server(some_options(repository), lines.append)
    try:
        while not lines:
            assert server.process.poll() is None
        (record,) = running_servers()
        given = arguments.read_text().splitlines()
        folder = next(shared_memory.glob("codetr-serve-*"))
        assert f"--model-repository={folder}/models" in given
        assert f"--backend-config=python,shm-region-prefix-name={folder.name}_" in given
        assert f"--grpc-restricted-protocol={','.join(PROTECTED)}:codetr-admin={record.admin_key}" in given
        assert (record.grpc_port, record.repository) == (server.options.grpc_port, str(repository))
        assert record.admin_key is not None
        assert len(record.admin_key) == 48
        assert record.admin_key.encode() not in Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        (shared_memory / f"{folder.name}_region").touch()
    finally:
        server.stop()
    assert list(shared_memory.iterdir()) == []


def test_each_start_makes_its_own_key(repository: Path, pretend: object) -> None:
    pretend("sleep 600")
    keys = set()
    for _ in range(2):
        server = start_server(some_options(repository))
        keys.add(server.options.admin_key)
        server.stop()
    assert len(keys) == 2


PATIENCE = 120.0  # seconds, of which a test needs one or two


def failure(repository: Path, timeout: float = PATIENCE) -> str:
    with pytest.raises(CodetrError) as caught, running_server(repository, (), timeout):
        pass
    return str(caught.value)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param("echo last; exit 3", "tritonserver ended with status 3; its last line: last", id="ends"),
        pytest.param("kill -9 $$", "was ended by SIGKILL, most likely because .* memory ran out", id="killed"),
        pytest.param("kill -BUS $$", "was ended by SIGBUS, most likely because /dev/shm is full", id="no room"),
        pytest.param(
            'echo "E1126 1 a.cc:1] \\"failed to load \'m\' version 1: Internal: why\\""; exit 1',
            "^model m failed to load: why$",
            id="a model",
        ),
    ],
)
def test_a_server_that_ends_says_why(repository: Path, pretend: object, script: str, message: str) -> None:
    pretend(script)
    assert re.search(message, failure(repository))


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once somebody has looked at a step that lives: steps of tests end then, and not before."""
    path = tmp_path / "seen"

    class Stubs(LoadingStubs):
        def died(self, begun: Sequence[str]) -> tuple[str, int] | None:
            found = super().died(begun)
            if self._any_alive and self._names:
                path.touch()
            return found

    monkeypatch.setattr(launch, "LoadingStubs", Stubs)
    monkeypatch.setattr(launch, "_LOOK_AT_STUBS_SECONDS", 0.1)
    return path


# A step as Triton 2.51 starts it, which nobody waits for: the program keeps it as a zombie.
STEP = "python3 -c 'import subprocess, sys, time; p = subprocess.Popen(sys.argv[1:]); time.sleep(600)' bash -c '{}' {}"


@pytest.mark.parametrize(
    ("end", "message"),
    [
        pytest.param("kill -9 $$", "codetr_detector was ended by SIGKILL, most likely", id="out of memory"),
        pytest.param("exit 127", "codetr_detector ended with status 127, while it was loaded", id="ends"),
    ],
)
def test_the_wait_ends_when_a_step_dies_unnoticed(
    repository: Path, pretend: object, seen: Path, end: str, message: str
) -> None:
    step = f'until [ -e "{seen}" ]; do sleep 0.1; done; {end}'
    pretend(f"echo 'libpython.so: cannot open'; exec {STEP.format(step, '/r/codetr_detector/1/model.py')}")
    said = failure(repository)
    assert message in said
    assert said.endswith("; it said: libpython.so: cannot open")


UNHEALTHY = "E1126 1 a.cc:1] \"failed to load 'codetr_detector' version 1: Internal: Stub process 'x' is not healthy.\""


def test_a_death_that_the_server_notices_is_told_with_its_cause(
    repository: Path, pretend: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It takes the dead step away, once somebody has seen it, and ends.
    alive, dead = tmp_path / "alive", tmp_path / "dead"
    server = tmp_path / "server.py"
    server.write_text(
        "import pathlib, subprocess, sys, time\n"
        f"step = 'until [ -e {alive} ]; do sleep 0.1; done; kill -9 $$'\n"
        "step = subprocess.Popen(['bash', '-c', step, '/r/codetr_detector/1/model.py'])\n"
        f"while not pathlib.Path({str(dead)!r}).exists(): time.sleep(0.1)\n"
        f"step.wait(); print({UNHEALTHY!r}); sys.exit(1)\n"
    )

    class Stubs(LoadingStubs):
        def look(self) -> set[int]:
            found = super().look()
            if self._any_alive and any(self._names.values()):
                alive.touch()
            if found:
                dead.touch()
            return found

    monkeypatch.setattr(launch, "LoadingStubs", Stubs)
    monkeypatch.setattr(launch, "_LOOK_AT_STUBS_SECONDS", 600)
    pretend(f"exec python3 '{server}'")
    assert re.search("codetr_detector .* not healthy: it was ended by SIGKILL, most likely", failure(repository))


def test_the_wait_ends_when_all_steps_are_gone(
    repository: Path, pretend: object, seen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_WITHOUT_STEPS_SECONDS", 0.1)
    step = f"while [ ! -e '{seen}' ]; do sleep 0.1; done"
    pretend(f"echo loading; ({step}) & wait; exec python3 -c 'import time; time.sleep(600)'")
    said = failure(repository)
    assert said.startswith("all Python steps have ended while they were loaded; the last line: loading")


def test_the_wait_ends_when_the_server_listens_and_is_not_ready(
    repository: Path, pretend: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_READY_AFTER_FAILURES_SECONDS", 0.1)
    log = tmp_path / "log"
    log.write_text(
        "E1126 1 a.cc:1] \"failed to load 'm' version 1: Internal: why\"\n"
        'I1126 1 http_server.cc:1] "Started HTTPService at 127.0.0.1:1"\n'
    )
    pretend(f"cat '{log}'; sleep 600")
    assert failure(repository) == "model m failed to load: why"
    log.write_text(log.read_text().splitlines(keepends=True)[1])
    monkeypatch.setattr(launch, "_READY_AFTER_LISTENING_SECONDS", 0.1)
    assert failure(repository).startswith("tritonserver listens but does not become ready: I1126")


def test_the_wait_ends_with_the_time_allowed(repository: Path, pretend: object) -> None:
    pretend("echo loading; sleep 600")
    said = threading.Event()
    server = start_server(some_options(repository), lambda line: said.set())
    try:
        assert said.wait(PATIENCE)
        with pytest.raises(CodetrError, match=r"^tritonserver was not ready within 0\.1 s: loading$"):
            server.wait_ready(0.1)
    finally:
        server.stop()


def test_a_log_names_the_repository_as_the_user_does(repository: Path, pretend: object) -> None:
    pretend('for word in "$@"; do echo "$word"; done; exit 1')
    lines: list[str] = []
    server = start_server(some_options(repository), lines.append)
    server.process.wait()
    server.stop()
    assert f"--model-repository={repository}" in lines


def test_readiness_is_asked_without_the_environments_proxies(
    repository: Path, pretend: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://192.0.2.1:3128")
    options = some_options(repository)
    answers = r"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    pretend(
        f'exec python3 -c \'import socket; s = socket.create_server(("127.0.0.1", {options.http_port}))\n'
        f'while True: c, _ = s.accept(); c.recv(999); c.sendall(b"{answers}"); c.close()\''
    )
    server: TritonServer = start_server(options)
    try:
        server.wait_ready(PATIENCE)
    finally:
        server.stop()
