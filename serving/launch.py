"""Start a `tritonserver` on a repository, know when it is ready, and say what is wrong when it is not."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO

from serving.child import bound_to_us
from serving.contract import DETECTOR, ENSEMBLE, PLUGIN_LIBRARY, POSTPROCESS, PREPROCESS, model_name
from serving.errors import CodetrError
from serving.manifest import (
    FILES,
    PLAN_BACKEND,
    check_files,
    check_versions,
    engine_names,
    foreign_folders,
    read_manifest,
)

# Where the set-up puts the wheel that carries a tritonserver; see `INSTALL_HINT`.
TRITON_FOLDER = Path(__file__).resolve().parent.parent / ".triton"
INSTALL_HINT = "python -m pip install --no-deps --target .triton/pytriton nvidia-pytriton==0.7.0"
LOOPBACK = "127.0.0.1"

# Lines of tritonserver 2.51's log (and of its final complaint) that say why it could not start.
_FAILED_MODEL = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?:\w+(?: \w+)*: )?(?P<reason>.*)")
_FAILED_SOCKET = re.compile(r"Socket '(?P<socket>[^']+)' already in use")
_LOG_WARNING = re.compile(r"[WE]\d{4} ")
_STOP_SECONDS = 40.0  # tritonserver itself gives up waiting for inferences after 30


@dataclass(frozen=True)
class ServerOptions:
    """How to start a server on a repository."""

    repository: Path
    host: str = LOOPBACK
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    extra: tuple[str, ...] = ()  # further options of tritonserver

    def __post_init__(self) -> None:
        ports = self.ports
        for name, port in ports.items():
            if not 1 <= port <= 65535:
                raise CodetrError(f"{name} port: expected 1..65535, got {port}")
        if len(set(ports.values())) != len(ports):
            raise CodetrError(f"expected three different ports, got {', '.join(map(str, ports.values()))}")

    @property
    def ports(self) -> dict[str, int]:
        """The ports by what is spoken there."""
        return {"HTTP": self.http_port, "gRPC": self.grpc_port, "metrics": self.metrics_port}

    @property
    def address(self) -> str:
        """The address to reach the server at from this machine."""
        return LOOPBACK if self.host in ("0.0.0.0", "") else self.host


@dataclass(frozen=True)
class _Binary:
    """A tritonserver and what it needs to run here."""

    path: Path
    backends: Path | None  # None: the binary knows its own
    library_path: str | None


class TritonServer:
    """A running `tritonserver`; made by `start_server`.

    Attributes:
        options: how it was started; its ports are the endpoints.
        binary: the tritonserver that runs.
        process: the server's process, leader of its own process group.
    """

    def __init__(
        self, options: ServerOptions, binary: Path, process: subprocess.Popen[str], on_log: Callable[[str], object]
    ) -> None:
        self.options = options
        self.binary = binary
        self.process = process
        self._on_log = on_log
        self._log: deque[str] = deque(maxlen=2000)
        self._reader = threading.Thread(target=self._read_log, args=(process.stdout,), daemon=True)
        self._reader.start()

    @property
    def http_url(self) -> str:
        """`host:port` of the HTTP endpoint, as tritonclient takes it."""
        return f"{self.options.address}:{self.options.http_port}"

    @property
    def grpc_url(self) -> str:
        """`host:port` of the gRPC endpoint, as tritonclient takes it."""
        return f"{self.options.address}:{self.options.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """The URL of the Prometheus metrics."""
        return f"http://{self.options.address}:{self.options.metrics_port}/metrics"

    def log(self) -> str:
        """Return the last lines that the server wrote."""
        return "\n".join(self._log)

    def is_ready(self) -> bool:
        """Return whether every model is loaded."""
        try:
            with urllib.request.urlopen(f"http://{self.http_url}/v2/health/ready", timeout=2) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, timeout: float | None = None, on_wait: Callable[[float], object] | None = None) -> None:
        """Wait until every model is loaded.

        Args:
            timeout: seconds, or None to wait as long as the server lives.
            on_wait: called with the seconds waited, several times a second.

        Raises:
            CodetrError: the server ended, or the time is over; says why.
        """
        started = time.monotonic()
        while not self.is_ready():
            if self.process.poll() is not None:
                raise CodetrError(self._why_it_ended())
            waited = time.monotonic() - started
            if timeout is not None and waited > timeout:
                raise CodetrError(f"tritonserver was not ready within {timeout:.0f} s: {self._last_line()}")
            if on_wait is not None:
                on_wait(waited)
            time.sleep(0.1)

    def stop(self) -> int:
        """Let the server finish what it does, end it, and return its exit status (negative: the signal's number)."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()
        finally:
            self._reader.join(1)

    def _read_log(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                self._log.append(line.rstrip("\n"))
                self._on_log(line.rstrip("\n"))

    def _last_line(self) -> str:
        return next((line for line in reversed(self._log) if line.strip()), "(nothing)")

    def _why_it_ended(self) -> str:
        self._reader.join(1)
        failures = {match["model"]: match["reason"] for match in map(_FAILED_MODEL.search, self._log) if match}
        if failures:
            return "; ".join(f"model {model} failed to load: {reason.strip()}" for model, reason in failures.items())
        taken = next((match["socket"] for match in map(_FAILED_SOCKET.search, self._log) if match), None)
        if taken:
            return f"the port of {taken} is taken by another program; name another port"
        return f"tritonserver ended with status {self.process.returncode}; its last line: {self._last_line()}"


def start_server(options: ServerOptions, on_log: Callable[[str], object] = lambda line: None) -> TritonServer:
    """Start a server; it ends with this process, however that ends. Call it from a thread that lives as long.

    Args:
        options: the repository, the host and the ports.
        on_log: called, in another thread, with each line that the server writes.

    Raises:
        CodetrError: the repository is missing, incomplete or not what was built; a port is taken; there is no
            tritonserver.
    """
    check_repository(options.repository)
    for name, port in options.ports.items():
        _check_port(name, options.host, port)
    binary = find_tritonserver()
    process = subprocess.Popen(
        bound_to_us(_command(binary, options)),
        env=_environment(binary),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches the server through us, and only once
    )
    return TritonServer(options, binary.path, process, on_log)


@contextmanager
def running_server(
    repository: Path,
    extra: Sequence[str] = (),
    timeout: float = 120.0,
    on_log: Callable[[str], object] = lambda line: None,
) -> Iterator[TritonServer]:
    """Run a server on free loopback ports for the length of a `with` block.

    Args:
        repository: what to serve.
        extra: further options of tritonserver.
        timeout: seconds to wait for readiness.
        on_log: called with each line that the server writes.

    Raises:
        CodetrError: as `start_server` and `TritonServer.wait_ready`.
    """
    http_port, grpc_port, metrics_port = free_ports(3)
    options = ServerOptions(repository, LOOPBACK, http_port, grpc_port, metrics_port, tuple(extra))
    server = start_server(options, on_log)
    try:
        server.wait_ready(timeout)
        yield server
    finally:
        server.stop()


def is_warning(line: str) -> bool:
    """Return whether a line of the server's log is a warning or an error."""
    return _LOG_WARNING.match(line) is not None


def free_ports(count: int) -> list[int]:
    """Return ports that are free on loopback at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def check_repository(repository: Path) -> None:
    """Check that a repository is complete and its engines those that were built.

    Raises:
        CodetrError: names what is missing or differs.
    """
    if not repository.is_dir():
        raise CodetrError(f"no repository at {repository}; write one there with `codetr build`")
    for name in engine_names(repository) or [ENSEMBLE]:
        for role in (ENSEMBLE, PREPROCESS, DETECTOR, POSTPROCESS):
            for part in ("config.pbtxt", "1"):
                path = repository / model_name(role, name) / part
                if not path.exists():
                    missing = path.relative_to(repository)
                    raise CodetrError(f"{repository} is incomplete: {missing} is missing; build it again")
        check_files(repository, name)
        check_versions(repository, name)
    if foreign := foreign_folders(repository):
        raise CodetrError(
            f"{repository} has folders that are no models: {', '.join(foreign)}; tritonserver would not start, so "
            "remove them"
        )


def find_plugin(repository: Path) -> Path | None:
    """Return the TensorRT plugin that the server must load for a repository's plans; None if there are none.

    A server can load one library that registers the operator, so the plans must have been built with the same.

    Raises:
        CodetrError: they were not; names the engines.
    """
    plugins = {}
    for name in engine_names(repository):
        file = f"{model_name(DETECTOR, name)}/1/{PLUGIN_LIBRARY}"
        manifest = read_manifest(repository, name)
        digest = manifest[FILES].get(file)
        if digest is not None and manifest.get(PLAN_BACKEND) != "python":  # whose step loads its own
            plugins[name] = (digest, repository / file)
    if len({digest for digest, _ in plugins.values()}) > 1:
        raise CodetrError(
            f"the engines {', '.join(plugins)} of {repository} come with different builds of {PLUGIN_LIBRARY}, of "
            "which a server can load one; build them again with the same plugin, or serve them from two repositories"
        )
    return next((path for _, path in plugins.values()), None)


def find_tritonserver() -> _Binary:
    """Return the tritonserver on PATH, or the one of the nvidia-pytriton wheel in `.triton`.

    Raises:
        CodetrError: there is neither, or the wheel's does not work with this Python or numpy.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        return _Binary(Path(on_path).absolute(), backends=None, library_path=None)
    wheel = TRITON_FOLDER / "pytriton" / "pytriton" / "tritonserver"
    if not (wheel / "bin" / "tritonserver").is_file():
        raise CodetrError(f"no tritonserver on PATH and none in {TRITON_FOLDER.name}/; run: {INSTALL_HINT}")
    numpy_version = metadata.version("numpy")
    if int(numpy_version.split(".")[0]) >= 2:
        raise CodetrError(
            f"numpy {numpy_version} corrupts the tensors of this tritonserver silently; "
            "run: python -m pip install numpy==1.26.4"
        )
    return _Binary(wheel / "bin" / "tritonserver", _link_backends(wheel), sysconfig.get_config_var("LIBDIR"))


def _link_backends(wheel: Path) -> Path:
    """Make the backend directory: links, since the libraries find theirs relative to where they really lie."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise CodetrError(f"this tritonserver has no Python backend for Python {version}; use Python 3.10 to 3.12")
    backend = wheel / "backends" / "python"
    folder = TRITON_FOLDER / f"backends-{version}" / "python"
    folder.mkdir(parents=True, exist_ok=True)
    for source in (stub, backend / "libtriton_python.so", backend / "triton_python_backend_utils.py"):
        link = folder / source.name
        target = os.path.relpath(source, folder)
        if not link.is_symlink() or os.readlink(link) != target:
            fresh = folder / f".{source.name}.{os.getpid()}"  # renamed, so that servers starting at once do not clash
            fresh.symlink_to(target)
            fresh.replace(link)
    return folder.parent


def _command(binary: _Binary, options: ServerOptions) -> list[str]:
    command = [
        str(binary.path),
        f"--model-repository={options.repository.absolute()}",
        f"--http-address={options.host}",
        f"--grpc-address={options.host}",
        f"--metrics-address={options.host}",
        f"--http-port={options.http_port}",
        f"--grpc-port={options.grpc_port}",
        f"--metrics-port={options.metrics_port}",
        "--disable-auto-complete-config",  # our configs are complete; asking the models would start each twice
    ]
    plugin = find_plugin(options.repository.absolute())
    if plugin is not None:
        command.append(f"--backend-config=tensorrt,plugins={plugin}")
    manifests = [read_manifest(options.repository, name) for name in engine_names(options.repository)]
    if any(manifest.get("version_compatible", False) for manifest in manifests):
        command.append("--backend-config=tensorrt,version-compatible=true")  # off unless asked for
    if binary.backends is not None:
        command.append(f"--backend-directory={binary.backends}")
    if not Path("/dev/nvidiactl").exists():
        command += ["--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]
    return [*command, *options.extra]


def _environment(binary: _Binary) -> dict[str, str]:
    """Return our environment, with this interpreter where the Python backend looks: first on PATH."""
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    if binary.library_path:
        paths = [binary.library_path, environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))
    return environment


def _check_port(name: str, host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = (
                "is taken by another program"
                if error.errno == errno.EADDRINUSE
                else f"cannot be used ({error.strerror})"
            )
            raise CodetrError(
                f"the {name} port {port} of {host} {reason}; name another with --{name.lower()}-port"
            ) from error
