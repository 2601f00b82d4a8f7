"""Starts locust on a load test and says how it ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from perf.load.config import LoadConfig
from perf.load.limits import STATUS_LIMIT
from perf.load.timing import connect
from perf.records import RESULTS_NAME, begin, measured
from perf.report import load_record
from serving.child import bound_to_us
from serving.errors import CodetrError

# Seconds that requests in flight get to be answered when the run ends.
STOP_TIMEOUT = 10
# Seconds that an interrupted locust gets to end its users and write everything.
END_TIMEOUT = STOP_TIMEOUT + 60
LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def run(config: LoadConfig, web: bool = False, locust_options: Sequence[str] = ()) -> bool:
    """Run a load test in a process of its own; results lie in the configured folder, also after Ctrl-C.

    Returns whether the load went through its shape, and was not ended before.

    `web` opens locust's page instead of starting at once; `locust_options` are handed on, such as `--master` or
    `--worker --master-host HOST`. A second Ctrl-C ends everything at once. Raises CodetrError if the server is not
    ready, there is no process `server_pid` or no baseline, a limit is broken, or locust fails or does not end.
    """
    _check(config, config.folder / RESULTS_NAME)
    begin(config.folder, "load")
    try:
        with _locust(config, web, locust_options) as process:
            status = _wait(process)
    finally:
        record = measured(config.folder) or {}
    if status == STATUS_LIMIT:
        raise CodetrError("; ".join(record["broken_limits"]))
    if status:
        raise CodetrError(f"locust ended with status {status}; its own words are above")
    return bool(record.get("complete", True))


def _check(config: LoadConfig, results: Path) -> None:
    if config.server_pid is not None and not psutil.pid_exists(config.server_pid):
        raise CodetrError(f"server_pid {config.server_pid}: there is no such process")
    if config.baseline:
        load_record(Path(config.baseline), "load")
        if results.exists() and results.samefile(config.baseline):
            raise CodetrError(f"baseline {config.baseline} is what this run writes: name another output")
    with connect(config) as client:
        client.check()


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:
        pass  # the terminal has sent it to locust too, which ends the run and writes what it has
    try:
        return process.wait(END_TIMEOUT)
    except KeyboardInterrupt:
        why = "was told twice"
    except subprocess.TimeoutExpired:
        why = f"did not end within {END_TIMEOUT} s"
    process.kill()
    process.wait()
    raise CodetrError(f"locust {why} and was killed; what it had not written is lost")


@contextmanager
def _locust(config: LoadConfig, web: bool, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start locust, and let SIGTERM, which only we receive, end it as Ctrl-C does."""
    told: list[int] = []
    started: list[subprocess.Popen[bytes]] = []

    def terminate(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if started:
            started[0].send_signal(signal.SIGINT)  # locust dies of SIGTERM without a word
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        process = subprocess.Popen(bound_to_us(command(config, web, options)), env=config.environment())
        started.append(process)
        if told:  # while it was started
            process.send_signal(signal.SIGINT)
        yield process
    finally:
        signal.signal(signal.SIGTERM, before)


def command(config: LoadConfig, web: bool, locust_options: Sequence[str]) -> list[str]:
    """Return locust's command line; a worker gets neither reports nor a page, its master has them."""
    base = [sys.executable, "-m", "perf.load.locust_main", "--locustfile", str(LOCUSTFILE)]
    if "--worker" in locust_options:
        return [*base, *locust_options]
    reports = ["--csv", str(config.folder / "locust"), "--html", str(config.folder / "locust.html")]
    start = ["--web-host", "127.0.0.1"] if web else ["--headless", "--only-summary"]
    return [*base, *reports, *start, "--stop-timeout", str(STOP_TIMEOUT), *locust_options]
