from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from codetr_client.errors import ServerUnreachableError
from perf.load import run as load_run
from perf.load.config import LoadConfig
from perf.load.limits import STATUS_LIMIT
from perf.load.run import command, run
from perf.records import write_record
from serving.errors import CodetrError


class ReadyClient:
    def __enter__(self) -> ReadyClient:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def check(self) -> None:
        pass


@pytest.fixture
def config(tmp_path: Path) -> LoadConfig:
    return LoadConfig("h:1", output=str(tmp_path / "out"))


def end_with(monkeypatch: pytest.MonkeyPatch, status: int, broken: str = "") -> None:
    """Let a small program stand for locust: it writes the results and ends with the status."""
    code = "import os, json, sys; c = json.loads(os.environ['CODETR_LOAD']); "
    code += f"open(c['output'] + '/results.json', 'w').write('{{\"broken_limits\": [{broken}]}}'); sys.exit({status})"
    monkeypatch.setattr(load_run, "connect", lambda config: ReadyClient())
    monkeypatch.setattr(load_run, "command", lambda *arguments: [sys.executable, "-c", code])


def test_limits_kept(config: LoadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    end_with(monkeypatch, 0)
    run(config)


def test_broken_limits_are_the_error(config: LoadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    end_with(monkeypatch, STATUS_LIMIT, '\\"too slow\\", \\"too many\\"')
    with pytest.raises(CodetrError, match=r"^too slow; too many$"):
        run(config)


def test_locusts_own_failure_is_an_error(config: LoadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    end_with(monkeypatch, 2)
    with pytest.raises(CodetrError, match="locust ended with status 2"):
        run(config)


def test_a_dead_server_is_an_error_before_anything_starts(config: LoadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class DeadClient(ReadyClient):
        def check(self) -> None:
            raise ServerUnreachableError("no server answers")

    monkeypatch.setattr(load_run, "connect", lambda config: DeadClient())
    with pytest.raises(ServerUnreachableError):
        run(config)
    assert not config.folder.exists()


class InterruptedProcess:
    """A process whose `wait` does in turn what it is given: returns a status, or raises."""

    def __init__(self, *ends: BaseException | int) -> None:
        self.ends = list(ends)
        self.killed = False
        self.signals: list[int] = []

    def wait(self, timeout: float | None = None) -> int:
        end = self.ends.pop(0)
        if isinstance(end, BaseException):
            raise end
        return end

    def kill(self) -> None:
        self.killed = True

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


@pytest.mark.parametrize("is_complete", [True, False])
def test_it_tells_whether_the_load_went_through_its_shape(
    config: LoadConfig, monkeypatch: pytest.MonkeyPatch, is_complete: bool
) -> None:
    class Locust(InterruptedProcess):
        def wait(self, timeout: float | None = None) -> int:
            write_record({"kind": "load", "complete": is_complete}, config.folder)
            return super().wait(timeout)

    monkeypatch.setattr(load_run, "connect", lambda config: ReadyClient())
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: Locust(0))
    assert run(config) is is_complete


def test_ctrl_c_waits_for_locust_to_write_its_results(config: LoadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    process = InterruptedProcess(KeyboardInterrupt(), 0)
    monkeypatch.setattr(load_run, "connect", lambda config: ReadyClient())
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: process)
    run(config)
    assert process.ends == []
    assert not process.killed


@pytest.mark.parametrize(
    ("second", "message"),
    [
        pytest.param(KeyboardInterrupt(), "locust was told twice and was killed", id="a second Ctrl-C"),
        pytest.param(subprocess.TimeoutExpired("locust", 70), "locust did not end within 70 s and was", id="it hangs"),
    ],
)
def test_an_interrupted_locust_does_not_live_for_ever(
    config: LoadConfig, monkeypatch: pytest.MonkeyPatch, second: BaseException, message: str
) -> None:
    process = InterruptedProcess(KeyboardInterrupt(), second, -9)
    monkeypatch.setattr(load_run, "connect", lambda config: ReadyClient())
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: process)
    with pytest.raises(CodetrError, match=message):
        run(config)
    assert process.killed


def test_what_cannot_be_used_is_an_error_before_anything_starts(
    config: LoadConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_run, "connect", lambda config: ReadyClient())
    with pytest.raises(CodetrError, match="server_pid 4194305: there is no such process"):
        run(replace(config, server_pid=2**22 + 1))
    with pytest.raises(CodetrError, match="cannot read the results"):
        run(replace(config, baseline=str(config.folder / "none.json")))
    assert not config.folder.exists()
    config.folder.mkdir()
    (config.folder / "results.json").write_text('{"kind": "load"}')
    with pytest.raises(CodetrError, match="is what this run writes"):
        run(replace(config, baseline=str(config.folder / "results.json")))


def test_sigterm_ends_locust_and_is_then_ours_again(config: LoadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    # blocked until it is waited for: one that came just before would be lost
    wait = "import signal, os; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); "
    wait += "os.kill(os.getppid(), signal.SIGTERM); signal.sigwait([signal.SIGINT]); os._exit(7)"
    monkeypatch.setattr(load_run, "connect", lambda config: ReadyClient())
    monkeypatch.setattr(load_run, "command", lambda *arguments: [sys.executable, "-c", wait])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(CodetrError, match="locust ended with status 7"):
        run(config)
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_while_locust_is_started_reaches_it_too(config: LoadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    process = InterruptedProcess(0)

    def start(*arguments: object, **options: object) -> InterruptedProcess:
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(load_run, "connect", lambda config: ReadyClient())
    monkeypatch.setattr(subprocess, "Popen", start)
    run(config)
    assert process.signals == [signal.SIGINT]


def test_command_lines(config: LoadConfig) -> None:
    assert "--headless" in command(config, web=False, locust_options=[])
    web = command(config, web=True, locust_options=["--master"])
    assert "--headless" not in web
    assert web[web.index("--web-host") + 1] == "127.0.0.1"
    assert web[-1] == "--master"
    worker = command(config, web=False, locust_options=["--worker", "--master-host", "h"])
    assert worker[-3:] == ["--worker", "--master-host", "h"]
    assert not {"--headless", "--csv", "--html"} & set(worker)
