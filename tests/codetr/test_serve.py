"""`codetr serve` around a server: what it says, what it hands on, and how it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner, Result

from codetr import serve
from codetr.cli import app
from serving.errors import CodetrError
from serving.tls import TlsFiles


@pytest.fixture(autouse=True)
def _signals_as_before() -> object:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


class Process:
    """A process that runs until it gets a signal."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.status: int | None = None

    def poll(self) -> int | None:
        return self.status

    def kill(self) -> None:
        self.signals.append(signal.SIGKILL)
        self.status = -signal.SIGKILL


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, SimpleNamespace]]:
    """Runs the command with a stand-in for the server, which `during` gets while it loads, and `serving` then."""

    def run(
        *words: str,
        status: int = 0,
        notes: tuple[str, ...] = (),
        starting: Callable[[], object] = lambda: None,
        during: Callable[[SimpleNamespace], object] = lambda server: None,
        serving: Callable[[SimpleNamespace, Callable[[str], object]], object] | None = None,
    ) -> tuple[Result, SimpleNamespace]:
        server = SimpleNamespace(
            binary=Path("/triton"), http_url="h:1", grpc_url="g:2", metrics_url="m", notes=notes, process=Process()
        )
        server.wait_ready = lambda timeout, on_wait: during(server)
        server.tell_to_end = server.process.signals.append
        server.drained = 0
        server.stop = lambda: status

        def watch(report: Callable[[str], object]) -> object:
            if serving is None:
                server.process.status = status  # it ends by itself at once
                return None
            return serving(server, report)

        def drain(wanted: Callable[[], bool]) -> None:
            server.drained += wanted()

        server.watch, server.drain = watch, drain
        server.follow = lambda report, load_seconds: None

        def start(options: object, on_log: object) -> SimpleNamespace:
            server.options, server.on_log = options, on_log
            starting()
            return server

        monkeypatch.setattr(serve, "start_server", start)
        return CliRunner().invoke(app, ["serve", "--repository", "/a [bold]repository", *words]), server

    return run


def test_places_and_warnings_are_shown_as_they_are(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_in_container", lambda environment: True)
    result, _ = run(notes=("no [red]room :dog: \x1b[1m",))
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "starting /triton on /a [bold]repository",
        "ready: HTTP h:1, gRPC g:2, metrics m",
        "warning: no [red]room :dog: \\x1b[1m",
    ]


@pytest.mark.parametrize(("user", "inside", "warned"), [(0, False, True), (0, True, False), (7, False, False)])
def test_root_outside_a_container_is_warned(
    run: Callable, monkeypatch: pytest.MonkeyPatch, user: int, inside: bool, warned: bool
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: user)
    monkeypatch.setattr(serve, "_in_container", lambda environment: inside)
    result, _ = run()
    assert ("warning: this runs as root" in result.stderr) is warned


def test_a_cluster_is_told_by_its_environment() -> None:
    assert serve._in_container({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})


@pytest.mark.parametrize(
    ("number", "handed_on"),
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGHUP, signal.SIGTERM)],
)
def test_signals_reach_the_server_and_are_no_failure(run: Callable, number: int, handed_on: int) -> None:
    def during(server: SimpleNamespace) -> None:
        os.kill(os.getpid(), number)
        raise CodetrError("tritonserver ended")

    former = signal.signal(number, signal.SIG_DFL)  # nohup has SIGHUP ignored
    try:
        result, server = run(during=during, status=-15)
    finally:
        signal.signal(number, former)
    assert server.process.signals == [handed_on]
    assert result.exit_code == 128 + 15
    assert "error" not in result.stderr


def test_a_signal_to_a_server_that_serves_lets_it_finish_first(run: Callable) -> None:
    _, server = run(serving=lambda server, report: os.kill(os.getpid(), signal.SIGTERM))
    assert (server.drained, server.process.signals) == (1, [])


def test_a_second_signal_ends_a_server_at_once(run: Callable) -> None:
    def serving(server: SimpleNamespace, report: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    result, server = run(serving=serving, status=-9)
    assert (server.drained, server.process.signals) == (0, [signal.SIGKILL])
    assert result.exit_code == 128 + 9


def test_what_the_watchdog_does_is_shown(run: Callable) -> None:
    def serving(server: SimpleNamespace, report: Callable[[str], object]) -> None:
        report("a [step] has died: loading it anew")
        server.process.status = 0

    result, _ = run(serving=serving)
    assert "warning: a [step] has died: loading it anew" in result.stderr


@pytest.mark.parametrize(("words", "lines"), [((), 1), (("--verbose",), 2)])
def test_the_servers_log_is_shown_without_stacks_and_repeats(run: Callable, words: Sequence[str], lines: int) -> None:
    stack = r"\n\nAt:\n  /srv/model.py(3): execute\n"

    def serving(server: SimpleNamespace, report: object) -> None:
        for _ in range(2):
            server.on_log(f'E1126 07:35:24.6 9 e.cc:1] "CodetrError: an [entry] is wrong{stack}"')
        server.process.status = 0

    result, _ = run(*words, serving=serving)
    assert len([line for line in result.stderr.splitlines() if "an [entry] is wrong" in line]) == lines
    assert ("model.py" in result.stderr) is bool(words)  # what the server wrote, for who wants all of it
    assert ("07:35:24 an [entry] is wrong\n" in result.stderr) is not bool(words)


def test_a_signal_that_came_while_the_server_was_started_reaches_it_too(run: Callable) -> None:
    _, server = run(starting=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert server.process.signals == [signal.SIGTERM]


def test_nohup_stays_in_force(run: Callable) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _, server = run(during=lambda server: os.kill(os.getpid(), signal.SIGHUP))
    assert server.process.signals == []


def test_a_server_that_ends_by_itself_is_said(run: Callable) -> None:
    result, _ = run(status=-9)
    assert result.exit_code == 128 + 9
    assert "error: tritonserver was ended by SIGKILL, most likely because" in result.stderr


def test_a_server_that_the_watchdog_ended_has_not_run_out_of_memory(run: Callable) -> None:
    def serving(server: SimpleNamespace, report: object) -> SimpleNamespace:
        server.process.status = -9
        return SimpleNamespace(has_given_up=True)

    result, _ = run(serving=serving, status=-9)
    assert result.exit_code == 128 + 9
    assert "error: tritonserver was ended, because it loads nothing anew any more" in result.stderr
    assert "memory" not in result.stderr


def test_certificates_and_the_operators_key_reach_the_server(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODETR_ADMIN_KEY", "mine")
    _, server = run("--tls-cert=/c", "--tls-key=/k", "--tls-ca=/a", "--host", "::", "--", "--id=x")
    assert server.options.tls == TlsFiles(Path("/c"), Path("/k"), Path("/a"))
    assert (server.options.admin_key, server.options.host, server.options.extra) == ("mine", "::", ("--id=x",))


@pytest.mark.parametrize("words", [("--tls-cert=/c",), ("--tls-key=/k",), ("--tls-ca=/a",)])
def test_half_of_the_certificates_is_refused(run: Callable, words: tuple[str, ...]) -> None:
    result, _ = run(*words)
    assert str(result.exception) == "--tls-cert and --tls-key belong together, and --tls-ca needs both"
