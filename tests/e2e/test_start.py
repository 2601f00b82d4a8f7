"""How `codetr serve` starts, is found and is shut, on a real tritonserver with an engine of known answers."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from serving.contract import POSTPROCESS
from serving.errors import CodetrError
from serving.launch import free_ports, running_server
from serving.runtime import SHARED_MEMORY, admin_headers, find_server, server_folders
from tests.certificates import Authority

pytestmark = pytest.mark.server

# What a shell would take apart, rich would make bold, and nobody expects.
ODD_NAME = 'a repository\'s "päth" $HOME `id` [bold]; & -x\n'
PROXY = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "grpc_proxy"), "http://192.0.2.1:3128")  # RFC 5737


@dataclass(frozen=True)
class Served:
    """A `codetr serve` that is ready: its process, what it said, and its ports."""

    process: subprocess.Popen[str]
    said: Sequence[str]
    http_port: int
    grpc_port: int
    metrics_port: int


@contextmanager
def served(repository: Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[Served]:
    ports = free_ports(3)
    words = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    command = [str(Path(sys.executable).parent / "codetr"), "serve", "--repository", str(repository), *words, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})
    assert process.stderr is not None
    said = []
    try:
        for line in process.stderr:
            said.append(line.rstrip("\n"))
            if line.startswith("ready: "):
                break
        assert process.poll() is None, said
        yield Served(process, said, *ports)
    finally:
        process.terminate()
        process.communicate(timeout=300)


def http_status(port: int, path: str, headers: dict[str, str] | None = None, host: str = "127.0.0.1") -> int:
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request("POST" if path.endswith(("index", "load")) else "GET", path, headers=headers or {})
        return connection.getresponse().status
    finally:
        connection.close()


# An endpoint of each kind that is shut, as HTTP and as a method of tritonclient's for gRPC.
SHUT: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "model-repository": ("/v2/repository/index", "get_model_repository_index", ()),
    "loading": ("/v2/repository/models/codetr/load", "load_model", ("codetr",)),
    "shared-memory": ("/v2/systemsharedmemory/status", "get_system_shared_memory_status", ()),
    "cuda": ("/v2/cudasharedmemory/status", "get_cuda_shared_memory_status", ()),
    "trace": ("/v2/trace/setting", "get_trace_settings", ()),
    "trace of a model": ("/v2/models/codetr/trace/setting", "get_trace_settings", ("codetr",)),
    "logging": ("/v2/logging", "get_log_settings", ()),
}
STATISTICS = ("/v2/models/stats", "get_inference_statistics", ())


def is_shut(client: Any, port: int, path: str, method: str, arguments: tuple[str, ...]) -> bool:
    """Whether both protocols refuse a question without the key; that they agree."""
    try:
        getattr(client, method)(*arguments)
        refused = False
    except InferenceServerException as error:
        refused = "This protocol is restricted" in str(error)
    assert (http_status(port, path) == http.client.FORBIDDEN) is refused
    return refused


@pytest.fixture(scope="module")
def odd(tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """A server by a name, behind a proxy, on a repository of an odd name that cannot be written."""
    repository = tmp_path_factory.mktemp("odd") / ODD_NAME
    shutil.copytree(tiny_repository, repository)
    with served(repository, "--host", "localhost", environment=PROXY) as running:
        yield running, repository


def test_a_repository_of_any_name_is_served_behind_a_proxy_by_a_name(odd: tuple[Served, Path]) -> None:
    running, repository = odd
    assert running.said[0].endswith(" on " + str(repository).replace("\n", "\\n"))
    places = f"ready: HTTP 127.0.0.1:{running.http_port}, gRPC 127.0.0.1:{running.grpc_port}, metrics http://127.0.0.1:"
    assert running.said[-1].startswith(places)
    assert http_status(running.http_port, "/v2/models/codetr/config", host="localhost") == http.client.OK
    assert http_status(running.metrics_port, "/metrics", host="localhost") == http.client.OK


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("with a space", id="space"),
        pytest.param("it's", id="quote"),
        pytest.param('"quoted"', id="quotes"),
        pytest.param("$HOME", id="variable"),
        pytest.param("`id`;$(id)&|<>", id="commands"),
        pytest.param("jürgen 図", id="not ASCII"),
        pytest.param("-dash", id="dash"),
        pytest.param("two\nlines", id="line feed"),
        pytest.param("*?[a]{b,c}", id="pattern"),
        pytest.param("back\\slash", id="backslash"),
        pytest.param("#comment~", id="comment"),
        pytest.param("/".join(["long" * 60] * 12), id="2,900 characters"),
    ],
)
def test_names_of_each_kind_are_served_and_leave_nothing(tiny_repository: Path, tmp_path: Path, name: str) -> None:
    repository = tmp_path / name
    shutil.copytree(tiny_repository, repository)
    with served(repository) as running:
        folder = _folder_of(running)
        assert http_status(running.http_port, "/v2/models/codetr/ready") == http.client.OK
    assert left_over(folder) == []
    assert not list(repository.rglob("__pycache__"))


@pytest.mark.slow
def test_a_link_and_a_relative_path_are_served(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a link").symlink_to(tiny_repository)
    monkeypatch.chdir(tmp_path)
    with served(Path("a link")) as running:
        assert http_status(running.http_port, "/v2/models/codetr/ready") == http.client.OK


@pytest.mark.slow
def test_what_killed_starts_leave_is_gone_after_the_next(tiny_repository: Path) -> None:
    """`codetr serve` itself is killed: nobody is left to clean up."""
    folders = []
    for _ in range(5):
        with served(tiny_repository) as running:
            folders.append(_folder_of(running))
            family = psutil.Process(running.process.pid).children(recursive=True)
            running.process.kill()
            assert not psutil.wait_procs(family, 60)[1]
    assert left_over(folders[-1]) == [folders[-1]]
    with served(tiny_repository):
        assert [name for folder in folders for name in left_over(folder)] == []


def test_no_byte_code_is_written_into_the_repository(odd: tuple[Served, Path]) -> None:
    assert not list(odd[1].rglob("__pycache__"))


def test_endpoints_that_change_the_server_want_the_key_of_this_start(odd: tuple[Served, Path]) -> None:
    running, repository = odd
    record = find_server(f"localhost:{running.grpc_port}")
    assert record is not None
    assert record.repository == str(repository)
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client:
        for kind, (path, method, arguments) in SHUT.items():
            assert is_shut(client, running.http_port, path, method, arguments), kind
        assert not is_shut(client, running.http_port, *STATISTICS)
        headers = admin_headers(f"localhost:{running.grpc_port}", "grpc")
        assert len(client.get_model_repository_index(headers=headers).models) == 4
        with pytest.raises(InferenceServerException, match="not allowed"):  # nobody loads models, not even with the key
            client.load_model("codetr", headers=headers)
    headers = admin_headers(f"localhost:{running.http_port}", "http")
    assert http_status(running.http_port, "/v2/repository/index", headers) == http.client.OK
    assert http_status(running.http_port, "/v2/repository/index", {"codetr-admin": "x" * 48}) == http.client.FORBIDDEN


def test_no_users_ps_shows_the_key(odd: tuple[Served, Path]) -> None:
    running, _ = odd
    record = find_server(f"localhost:{running.grpc_port}")
    assert record is not None
    family = [psutil.Process(running.process.pid), *psutil.Process(running.process.pid).children(recursive=True)]
    assert len(family) >= 6  # ourselves, the server and its steps
    assert not [process for process in family if str(record.admin_key) in " ".join(process.cmdline())]


def _folder_of(running: Served) -> str:
    """The name of the server's private folder, with which the names of its shared memory begin."""
    return next(folder.name for folder, record in server_folders() if record.pid == running.process.pid)


def left_over(prefix: str) -> list[str]:
    return [path.name for path in SHARED_MEMORY.iterdir() if path.name.startswith(prefix)]


def test_grpc_with_certificates_on_every_network_and_what_a_killed_server_leaves(
    tiny_repository: Path, tmp_path: Path
) -> None:
    """One start for several questions."""
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    options = (f"--tls-cert={cert}", f"--tls-key={key}", f"--tls-ca={authority.cert}", "--host=0.0.0.0")
    ours = [path.read_bytes().decode() for path in authority.issue("a client")]
    with served(tiny_repository, *options) as running:
        address = f"localhost:{running.grpc_port}"
        with tritonclient.grpc.InferenceServerClient(address, ssl=True, **_files(tmp_path, authority, ours)) as client:
            assert client.is_model_ready("codetr")
            with pytest.raises(InferenceServerException, match="restricted"):  # others' networks reach it
                client.get_inference_statistics()
            headers = admin_headers(address, "grpc")
            assert client.get_inference_statistics(headers=headers).model_stats
        for stranger in ({}, {"ssl": True, "root_certificates": str(authority.cert)}):  # without TLS; unnamed
            client = tritonclient.grpc.InferenceServerClient(address, **stranger)
            with client, pytest.raises(InferenceServerException):
                client.is_server_live(client_timeout=60)
        # plain HTTP stays on this machine; HTTP is what is shut, not the port
        (tcp,) = [c for c in _listening(running.process.pid) if c.laddr.port == running.http_port]
        assert tcp.laddr.ip == "127.0.0.1"
        prefix = _folder_of(running)
        assert len(left_over(prefix)) >= 6  # the folder and a region for each step's instance
        (server,) = psutil.Process(running.process.pid).children()
        steps = server.children()
        server.kill()
        said = running.process.stderr.read()  # type: ignore[union-attr]
        assert running.process.wait(60) == 128 + signal.SIGKILL
        assert "error: tritonserver was ended by SIGKILL, most likely because" in said
        assert not psutil.wait_procs(steps, 60)[1]
        assert left_over(prefix) == []


def _files(folder: Path, authority: Authority, ours: list[str]) -> dict[str, str]:
    names = {}
    for name, text in zip(("certificate_chain", "private_key"), ours, strict=True):
        (folder / name).write_text(text)
        names[name] = str(folder / name)
    return {**names, "root_certificates": str(authority.cert)}


def _listening(pid: int) -> list[Any]:
    (server,) = psutil.Process(pid).children()
    return [each for each in server.net_connections("tcp") if each.status == psutil.CONN_LISTEN]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        # A machine that is too busy to look once a second does not see how a process ended.
        pytest.param(
            "import os; os.kill(os.getpid(), 9)",
            "was ended by SIGKILL, most likely because .* memory|its process ended; .* most likely because memory",
            id="kill",
        ),
        pytest.param(
            "raise SystemExit(3)",
            "SystemExit: 3|ended with status 3|its process ended",
            id="exit",
            marks=pytest.mark.slow,
        ),
        pytest.param("import no_such_module", "No module named 'no_such_module'", id="module", marks=pytest.mark.slow),
        pytest.param(
            "import ctypes; ctypes.CDLL('libnvinfer.so.99')",
            "libnvinfer.so.99: cannot open",
            id="library",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_wait_for_a_step_that_cannot_start_ends_with_the_reason(
    tiny_repository: Path, tmp_path: Path, line: str, reason: str
) -> None:
    broken = Path(shutil.copytree(tiny_repository, tmp_path / "broken"))
    model = broken / POSTPROCESS / "1" / "model.py"
    text = model.read_text()
    model.unlink()
    model.write_text(f"{line}\n{text}")
    with pytest.raises(CodetrError) as caught, running_server(broken, timeout=300):
        pass
    assert re.search(rf"{POSTPROCESS} .*({reason})", str(caught.value)), caught.value
    assert "\n" not in str(caught.value)
    assert "At:" not in str(caught.value)
    assert "model.py(" not in str(caught.value)
