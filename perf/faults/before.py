"""What a server does with our settings and without them: small images beside large ones, a flood, and its end."""

from __future__ import annotations

import http.client
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from perf.cost.cases import Case
from perf.cost.repository import edit_config, write_cost_repository
from perf.faults.run import Connection, Flooded, Load, flood, kill_newest
from perf.pictures import encoded_picture
from serving.contract import DETECTOR, PREPROCESS
from serving.launch import TritonServer, running_server

# A photograph of 24 million pixels and one of the size of a monitor of old; their clients, and for how long.
LARGE, SMALL = (6000, 4000), (640, 480)
CROWDS = (0, 2, 4)
SLOW_ENGINE_MS = 1000.0  # for each image
_END_LIMIT_SECONDS = 60.0


@dataclass(frozen=True)
class Fair:
    """One client with small images beside others with large ones, each asking without pause."""

    settings: str
    large_clients: int
    large_answered: int
    small_answered: int
    small_median_seconds: float
    small_longest_seconds: float


@dataclass(frozen=True)
class SlowFlood:
    """A flood of an engine that takes a second."""

    bound: bool  # whether pre-processing counts what waits for the detector
    flood: Flooded


@dataclass(frozen=True)
class Ended:
    """The end of a server after SIGTERM."""

    after: str
    ended_by: str  # codetr serve, or Triton alone
    seconds: float
    status: int | None  # None: it had to be killed after a minute


def fairness(repository: Path, seconds: float) -> Iterator[Fair]:
    """Yield what small images take beside large ones, with the repository's settings and with those of before.

    Args:
        repository: of one engine called `codetr`.
        seconds: for each number of clients.
    """
    large, small = encoded_picture(*LARGE), encoded_picture(*SMALL)
    for settings, change in (("of the repository", None), ("two instances, batches", _batches)):
        with _served(repository, change) as server, Connection(server) as connection:
            connection.ask(small, 60.0, None)
            for clients in CROWDS:
                with Load(server, large, clients) as load:
                    answers, until = [], time.monotonic() + seconds
                    while time.monotonic() < until:
                        answers.append(connection.ask(small, 60.0, None))
                times = [answer.ended - answer.began for answer in answers if not answer.error]
                answered = len([answer for answer in load.answers if not answer.error])
                yield Fair(settings, clients, answered, len(times), median(times), max(times))


def slow_floods() -> Iterator[SlowFlood]:
    """Yield floods of an engine that takes a second, which counts what waits for it and which does not."""
    image = encoded_picture(*SMALL)
    with TemporaryDirectory(prefix="codetr-faults-") as folder:
        slow = write_cost_repository(Path(folder, "slow"), Case(480, 320, dynamic_batching=False), SLOW_ENGINE_MS)
        for change in (None, _unbounded):
            with _served(slow, change) as server:
                yield SlowFlood(change is None, flood(server, image, with_deadline=change is None))


def ends(repository: Path) -> Iterator[Ended]:
    """Yield how a server ends, by `codetr serve` and by Triton alone."""
    image = encoded_picture(*SMALL)
    situations: dict[str, Callable[[TritonServer], Any]] = {
        "a step that died": lambda server: _after_death(server, image),
        "an HTTP connection that stays open": _with_connection,
        "two clients that ask on": lambda server: _with_clients(server, image),
    }
    for after, situation in situations.items():
        for alone in (True, False):
            with running_server(repository) as server, situation(server):
                began = time.monotonic()
                status = _end_alone(server) if alone else _end(server)
                server.process.kill()
                yield Ended(after, "Triton alone" if alone else "codetr serve", time.monotonic() - began, status)


def _end(server: TritonServer) -> int:
    server.drain(lambda: True)
    return server.stop()


def _end_alone(server: TritonServer) -> int | None:
    server.process.send_signal(signal.SIGTERM)
    try:
        return server.process.wait(_END_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return None


@contextmanager
def _after_death(server: TritonServer, image: bytes) -> Iterator[None]:
    server.watch(lambda line: None)
    with Load(server, image, 4):
        time.sleep(0.5)
        kill_newest(server, DETECTOR)
        until = time.monotonic() + 60
        while server.log().count(f"successfully loaded '{DETECTOR}'") < 2 and time.monotonic() < until:
            time.sleep(0.1)
    yield


@contextmanager
def _with_connection(server: TritonServer) -> Iterator[None]:
    connection = http.client.HTTPConnection(server.http_url)
    connection.request("GET", "/v2/health/ready")
    connection.getresponse().read()
    yield
    connection.close()


@contextmanager
def _with_clients(server: TritonServer, image: bytes) -> Iterator[None]:
    with Load(server, image, 2):
        time.sleep(0.5)
        yield


@contextmanager
def _served(repository: Path, change: Callable[[Any], None] | None) -> Iterator[TritonServer]:
    """Serve a copy of a repository whose pre-processing is changed."""
    with TemporaryDirectory(prefix="codetr-faults-") as folder:
        copy = Path(copytree(repository, Path(folder, "repository")))
        if change is not None:
            edit_config(copy, PREPROCESS, change)
        with running_server(copy) as server:
            yield server


def _batches(config: Any) -> None:
    config.instance_group[0].count = 2
    del config.dynamic_batching.preferred_batch_size[:]


def _unbounded(config: Any) -> None:
    config.parameters["max_waiting_images"].string_value = "1000000"
    config.parameters["max_waiting_seconds"].string_value = "1000000"
