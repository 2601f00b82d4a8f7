"""Start a `tritonserver` on a repository, know when it is ready, and say what is wrong when it is not."""

from __future__ import annotations

import http.client
import os
import secrets
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from serving.addresses import LOOPBACK, check_port, free_ports
from serving.admission import FOLDER_VARIABLE, drain
from serving.arguments import hide_argument
from serving.binary import Binary, find_tritonserver
from serving.child import allow_open_files, bound_to_us
from serving.contract import ENSEMBLE
from serving.errors import CodetrError
from serving.gpus import VISIBLE, ServerGpus, check_gpus
from serving.health import ask
from serving.manifest import engine_names
from serving.options import ServerOptions, tritonserver_options
from serving.python import python_folder
from serving.repository import (
    check_repository,
    find_plugin,
    has_version_compatible_plans,
    link_repository,
    served_models,
)
from serving.runtime import PrivateFolder, ServerRecord, remove_leftovers
from serving.server_log import (
    complaint,
    drained,
    failed_models,
    has_endpoints,
    how_it_ended,
    in_words,
    instances,
    last_line,
    waits_for_requests,
    what_it_waits_for,
    why_it_ended,
)
from serving.shared_memory import check_shared_memory
from serving.stubs import LoadingStubs
from serving.switcher import Switcher
from serving.versions import name_and_version, served_engines
from serving.view import INFLIGHT, bound_ensembles, make_reloadable
from serving.watchdog import STANDSTILL_SECONDS, Watchdog

__all__ = [
    "LOOPBACK",
    "ServerOptions",
    "TritonServer",
    "free_ports",
    "running_server",
    "start_server",
]

_DRAIN_SECONDS = 30.0
_STOP_SECONDS = 40.0  # tritonserver itself gives up waiting for inferences after 30
# A server that listens has tried to load every model; ready or not, it says so soon, on a busy machine too.
_READY_AFTER_LISTENING_SECONDS = 120.0
_READY_AFTER_FAILURES_SECONDS = 10.0
_LOOK_AT_STUBS_SECONDS = 0.5
# Between the end of a step that completes a configuration and the start of its instances there is none for a moment.
_WITHOUT_STEPS_SECONDS = 60.0
# Triton 2.51 keeps what a dead step had of its requests, and waits 30 s for it when nothing else is left to wait for.
_UNLOAD_SECONDS = 3.0
# Before it looks at its requests, Triton 2.51 waits 30 s for HTTP connections that clients and proxies keep open.
_CONNECTIONS_SECONDS = 3.0
# For the last lines of its log, on a machine that is busy.
_LOG_SECONDS = 10.0


class TritonServer:
    """A running `tritonserver`; made by `start_server`.

    Attributes:
        options: how it was started; its ports are the endpoints, its `admin_key` the one in force.
        binary: the tritonserver that runs.
        process: the server's process, leader of its own process group.
        notes: lines about this start that the user should see.
        engines: what the engines are called that it was started with, such as codetr.2; () where the user's own model
            control mode decides what is loaded.
    """

    def __init__(
        self,
        options: ServerOptions,
        binary: Path,
        process: subprocess.Popen[str],
        folder: PrivateFolder,
        on_log: Callable[[str], object],
        notes: Sequence[str] = (),
        engines: Sequence[str] = (),
        knows_limit: bool = False,
        gpus: int = 1,
    ) -> None:
        self.options = options
        self.binary = binary
        self.process = process
        self.notes = tuple(notes)
        self.engines = tuple(engines)
        self._knows_limit, self._gpus = knows_limit, gpus
        self._folder = folder
        self._on_log = on_log
        self._log: deque[str] = deque(maxlen=2000)
        self._lines = 0
        self._reader = threading.Thread(target=self._read_log, args=(process.stdout,), daemon=True)
        self._reader.start()
        self._started = time.monotonic()
        self._watchdog: Watchdog | None = None
        self._switcher: Switcher | None = None
        self._load_seconds = 0.0
        self._is_idle = False

    @property
    def http_url(self) -> str:
        """`host:port` of the HTTP endpoint, as tritonclient takes it."""
        return f"{self.options.http_address}:{self.options.http_port}"

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
        ensembles = (f"/v2/models/{name_and_version(engine)[0]}/ready" for engine in self.engines)
        try:
            return all(ask(self.http_url, path, 2)[0] == http.client.OK for path in ("/v2/health/ready", *ensembles))
        except (OSError, http.client.HTTPException):
            return False

    def wait_ready(self, timeout: float | None = None, on_wait: Callable[[float], object] | None = None) -> None:
        """Wait until every model is loaded.

        Args:
            timeout: seconds, or None to wait until the server is ready, or it is clear that it will not be.
            on_wait: called with the seconds waited, several times a second.

        Raises:
            CodetrError: the server ended, a step died or failed, or the time is over; says why.
        """
        started = time.monotonic()
        looks = _LooksAtLoading(self)
        while not self.is_ready():
            if self.process.poll() is not None:
                raise CodetrError(self._why_it_ended(looks.statuses))
            waited = time.monotonic() - started
            looks.raise_if_hopeless(waited)
            if timeout is not None and waited > timeout:
                raise CodetrError(
                    f"tritonserver was not ready within {timeout:g} s: {what_it_waits_for(list(self._log))}"
                )
            if on_wait is not None:
                on_wait(waited)
            time.sleep(0.1)
        self._load_seconds = time.monotonic() - self._started
        self._hide_key()

    def watch(self, report: Callable[[str], object], standstill_seconds: float = STANDSTILL_SECONDS) -> Watchdog | None:
        """Have steps that die or stand still loaded anew, from now that the server is ready until it is told to end.

        Args:
            report: called, in another thread, with one line for each.
            standstill_seconds: as of `serving.watchdog.Watchdog`.

        Returns:
            What watches; None where the user's own model control mode decides what is loaded.
        """
        if not self.options.names("model-control-mode"):
            folder = self._folder.path
            self._watchdog = Watchdog(
                self.process.pid, folder, folder / "models", report, self._load_seconds, standstill_seconds
            )
            self._watchdog.start()
        return self._watchdog

    def follow(self, report: Callable[[str, bool], object], load_seconds: float) -> Switcher | None:
        """Take over the versions that the repository will name, from now until the server is told to end.

        Args:
            report: called, in another thread, with one line for what happens, and whether it went wrong.
            load_seconds: the longest that a version may take to load.

        Returns:
            What does so; None where nothing is watched.
        """
        if self._watchdog is not None:
            self._switcher = Switcher(
                self.options.repository,
                self._folder.path,
                self.engines,
                self.http_url,
                self.process.pid,
                report,
                self._log_since,
                self._watchdog,
                load_seconds,
                self._knows_limit,
                self._gpus,
            )
            self._switcher.start()
        return self._switcher

    def _log_since(self, count: int) -> tuple[list[str], int]:
        lines, read = list(self._log), self._lines
        return (lines[-(read - count) :] if read > count else []), read

    def _watch_no_longer(self) -> None:
        for each in (self._switcher, self._watchdog):
            if each is not None:
                each.stop()

    def drain(self, wanted: Callable[[], bool]) -> None:
        """Refuse what comes from now on and wait for what is under way, half a minute at most, as long as `wanted`."""
        self._watch_no_longer()
        self._is_idle = drain(self._folder.path, _DRAIN_SECONDS, wanted)

    def tell_to_end(self, number: int = signal.SIGTERM) -> None:
        """Send the server a signal that ends it; it refuses what comes from now on, and finishes what it has."""
        self._watch_no_longer()
        if self.process.poll() is None:
            self.process.send_signal(number)

    def stop(self) -> int:
        """Let the server finish what it does, end it, and return its exit status (negative: the signal's number)."""
        self.tell_to_end()
        try:
            return self._wait_for_end()
        finally:
            self._read_to_the_end()
            self._folder.close()

    def _wait_for_end(self) -> int:
        started = time.monotonic()
        waits, is_drained = False, False
        until = started + (_CONNECTIONS_SECONDS if self._is_idle else _STOP_SECONDS)
        while time.monotonic() < until:
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(0.2)
            log = self._log.copy()
            if not waits and waits_for_requests(log):
                until, waits = started + _STOP_SECONDS, True
            if not is_drained and drained(log):
                until, is_drained = time.monotonic() + _UNLOAD_SECONDS, True
        self.process.kill()
        status = self.process.wait()
        return 0 if is_drained or (self._is_idle and not waits) else status

    def _why_it_ended(self, statuses: Callable[[Sequence[str]], dict[str, int]]) -> str:
        """Return in one line why the server, which has ended, did so before it was ready."""
        self._reader.join(1)
        self._read_to_the_end()
        log = list(self._log)
        return why_it_ended(log, self.process.returncode, statuses(log))

    def _read_to_the_end(self) -> None:
        """Read what the server, which has ended, has written; steps that outlive it keep its log open."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._reader.join(_LOG_SECONDS)

    def _hide_key(self) -> None:
        """Take the key out of the server's arguments, which it has read by the time of its first line."""
        if self.options.admin_key:
            hide_argument(self.process.pid, self.options.admin_key)

    def _read_log(self, stream: IO[str]) -> None:
        with stream:
            for line in stream:
                if not self._log:
                    self._hide_key()
                shown = line.rstrip("\n").replace(f"{self._folder.path}/models", str(self.options.repository))
                self._log.append(shown)
                self._lines += 1
                self._on_log(shown)


class _LooksAtLoading:
    """Sees that a server which is loading its models will never be ready."""

    def __init__(self, server: TritonServer) -> None:
        self._server = server
        self._stubs = LoadingStubs(server.process.pid)
        self._next = 0.0
        self._steps_seen = 0.0
        self._listening_since: float | None = None

    def raise_if_hopeless(self, waited: float) -> None:
        if waited < self._next:
            self._stubs.look()
            return
        self._next = waited + _LOOK_AT_STUBS_SECONDS
        log = self._server.log().split("\n")
        if died := self._stubs.died(instances(log)):
            said = complaint(log)
            reason = f"{died[0]} {how_it_ended(died[1])}, while it was loaded"
            raise CodetrError(f"{reason}; it said: {said}" if said else reason)
        if not self._stubs.all_gone:
            self._steps_seen = waited
        elif waited > self._steps_seen + _WITHOUT_STEPS_SECONDS:
            raise CodetrError(f"all Python steps have ended while they were loaded; the last line: {last_line(log)}")
        if self._listening_since is None and has_endpoints(log):
            self._listening_since = waited
        if self._listening_since is not None:
            self._raise_if_not_ready(log, waited - self._listening_since)

    def statuses(self, log: Sequence[str]) -> dict[str, int]:
        """Return how processes of steps ended that were seen dead, by their model's name."""
        return self._stubs.statuses(instances(log))

    def _raise_if_not_ready(self, log: list[str], listening: float) -> None:
        failures = failed_models(log, self.statuses(log))
        if failures and listening > _READY_AFTER_FAILURES_SECONDS:
            raise CodetrError(in_words(failures))
        if listening > _READY_AFTER_LISTENING_SECONDS:
            raise CodetrError(f"tritonserver listens but does not become ready: {last_line(log)}")


def start_server(options: ServerOptions, on_log: Callable[[str], object] = lambda line: None) -> TritonServer:
    """Start a server; it ends with this process, however that ends. Call it from a thread that lives as long.

    `TritonServer.stop` removes what the server keeps on this machine; a start removes what killed ones have left.

    Args:
        options: the repository, the host and the ports.
        on_log: called, in another thread, with each line that the server writes.

    Raises:
        CodetrError: the repository is missing, incomplete or not what was built; an address or a port cannot be
            listened on; there is no room in shared memory; there is no tritonserver.
    """
    allow_open_files()
    snapshot = not options.names("model-control-mode")  # who wants models to come and go sees to it
    engines = _engines(options) if snapshot else []
    check_repository(options.repository, engines if snapshot else None)
    gpus = check_gpus(options.repository, engines, options.gpus, os.environ) if engines else ServerGpus()
    for name, port in options.ports.items():
        listen = options.http_listen if name == "HTTP" else options.listen
        check_port(name, listen, port, f"--{name.lower()}-port")
    if options.tls is not None:
        options.tls.check()
    binary = find_tritonserver()
    remove_leftovers()
    models = served_models(options.repository, engines) if snapshot else None
    note = check_shared_memory(options.repository, models, gpus.count)
    options = replace(options, admin_key=options.admin_key or secrets.token_hex(24))
    knows_limit = snapshot and binary.has_config_field(INFLIGHT)
    folder = PrivateFolder()
    try:
        process = _start(binary, options, folder, engines if snapshot else None, gpus.devices, knows_limit)
    except BaseException:
        folder.close()
        raise
    return TritonServer(
        options, binary.path, process, folder, on_log, [note] if note else [], engines, knows_limit, gpus.count
    )


def _engines(options: ServerOptions) -> list[str]:
    """Return what the engines are called that are served; a repository that is none is no business of this."""
    if options.engines is not None:
        return list(options.engines)
    return served_engines(options.repository) if os.path.isdir(options.repository) else []


def _start(
    binary: Binary,
    options: ServerOptions,
    folder: PrivateFolder,
    engines: Sequence[str] | None,
    gpus: str | None,
    knows_limit: bool,
) -> subprocess.Popen[str]:
    models = link_repository(options.repository, folder.path, engines is not None, engines)
    if engines is not None:
        bound_ensembles(models, engine_names(models) or [ENSEMBLE], knows_limit)
        make_reloadable(models)
    plugin = find_plugin(options.repository, engines)
    arguments = tritonserver_options(
        options,
        models=models,
        plugin=plugin and models / plugin,
        version_compatible=has_version_compatible_plans(options.repository, engines),
        backends=binary.link_backends(folder.path),
        region_prefix=folder.region_prefix,
        known=binary.known_options(),
    )
    process = subprocess.Popen(
        bound_to_us([str(binary.path), *arguments]),
        env=binary.environment(python_folder(folder.path))
        | {FOLDER_VARIABLE: str(folder.path)}
        | folder.environment
        | ({VISIBLE: gpus} if gpus is not None else {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches the server through us, and only once
        pass_fds=folder.locks,  # held as long as the server or one of its steps lives
    )
    folder.write_record(
        ServerRecord(
            pid=os.getpid(),
            host=options.listen.ip,
            http_port=options.http_port,
            grpc_port=options.grpc_port,
            metrics_port=options.metrics_port,
            admin_key=options.admin_key,
            repository=str(options.repository.absolute()),
            tls=options.tls is not None,
            gpus=options.gpus,
        )
    )
    return process


@contextmanager
def running_server(
    repository: Path,
    extra: Sequence[str] = (),
    timeout: float = 120.0,
    on_log: Callable[[str], object] = lambda line: None,
    engines: Sequence[str] | None = None,
    gpus: str | None = None,
) -> Iterator[TritonServer]:
    """Run a server on free loopback ports for the length of a `with` block.

    Args:
        repository: what to serve.
        extra: further options of tritonserver.
        timeout: seconds to wait for readiness.
        on_log: called with each line that the server writes.
        engines: what the engines are called that are served; None for those that the repository names.
        gpus: which GPUs it gets, as of `serving.gpus.visible_devices`.

    Raises:
        CodetrError: as `start_server` and `TritonServer.wait_ready`.
    """
    http_port, grpc_port, metrics_port = free_ports(3)
    chosen = None if engines is None else tuple(engines)
    options = ServerOptions(
        repository, LOOPBACK, http_port, grpc_port, metrics_port, tuple(extra), engines=chosen, gpus=gpus
    )
    server = start_server(options, on_log)
    try:
        server.wait_ready(timeout)
        yield server
    finally:
        server.stop()
