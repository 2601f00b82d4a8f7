"""Starts locust on a load test and says how it ended."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from perf.load.config import LoadConfig
from perf.load.limits import STATUS_LIMIT
from perf.load.report import RESULTS_NAME
from perf.load.timing import connect
from serving.errors import CodetrError

# Seconds that requests in flight get to be answered when the run ends.
STOP_TIMEOUT = 10
LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def run(config: LoadConfig, web: bool = False, locust_options: Sequence[str] = ()) -> None:
    """Run a load test in a process of its own; results lie in the configured folder, also after Ctrl-C.

    `web` opens locust's page instead of starting at once; `locust_options` are handed on, such as `--master` or
    `--worker --master-host HOST`. Raises CodetrError if the server is not ready, a limit is broken or locust fails.
    """
    with connect(config) as client:
        client.check()
    config.folder.mkdir(parents=True, exist_ok=True)
    results = config.folder / RESULTS_NAME
    results.unlink(missing_ok=True)
    process = subprocess.Popen(command(config, web, locust_options), env=config.environment())
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            # the terminal has sent it to locust too, which ends the run and writes what it has
            continue
    if status == STATUS_LIMIT:
        raise CodetrError("; ".join(json.loads(results.read_text(encoding="utf-8"))["broken_limits"]))
    if status:
        raise CodetrError(f"locust ended with status {status}; its own words are above")


def command(config: LoadConfig, web: bool, locust_options: Sequence[str]) -> list[str]:
    """Return locust's command line; a worker gets neither reports nor a page, its master has them."""
    base = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE)]
    if "--worker" in locust_options:
        return [*base, *locust_options]
    reports = ["--csv", str(config.folder / "locust"), "--html", str(config.folder / "locust.html")]
    start = ["--web-host", "127.0.0.1"] if web else ["--headless", "--only-summary"]
    return [*base, *reports, *start, "--stop-timeout", str(STOP_TIMEOUT), *locust_options]
