"""What locust runs: `codetr bench load` starts it with the settings in the environment (`perf.load.config`)."""

from __future__ import annotations

import math
import random
import signal
import time
from typing import Any

import gevent
import grpc.experimental.gevent
import psutil
from locust import LoadTestShape, User, events, task
from locust.runners import WorkerRunner

from perf.load import scenarios
from perf.load.config import from_environment
from perf.load.limits import STATUS_LIMIT, Sample
from perf.load.monitor import MemoryMonitor, local_server
from perf.load.report import finish
from perf.load.timing import ClientPool, connect, send

# after locust has patched the standard library, and before the first channel: gRPC would else block every user
grpc.experimental.gevent.init_gevent()

# Ctrl-C goes to the main greenlet alone. Python's own handler raises in whichever is running, and where that is one of
# gRPC's it is now and then swallowed: the run went on. This one also stands where a shell started us in the background,
# with SIGINT ignored.
gevent.signal_handler(signal.SIGINT, gevent.get_hub().handle_system_error, KeyboardInterrupt, KeyboardInterrupt())

CONFIG = from_environment()
# Arrivals come as this many independent Poisson streams, each a locust user, so that locust spreads them over workers.
STREAMS = 20
MEMORY_INTERVAL = 2.0  # seconds

scenarios.prepare()


class Recorder:
    """The samples of a run, here or sent in by the workers, and the server's memory."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.samples: list[Sample] = []
        self.is_complete = False
        server = psutil.Process(CONFIG.server_pid) if CONFIG.server_pid else local_server(CONFIG.url)
        self.memory = MemoryMonitor(server)

    def on_request(self, name: str, response_time: float, exception: Exception | None, **rest: Any) -> None:
        """Keep one finished request."""
        second = time.monotonic() - self.start
        self.samples.append(Sample(second, name, response_time, str(exception) if exception else ""))

    def on_report_to_master(self, client_id: str, data: dict[str, Any]) -> None:
        """Hand a worker's samples over to the master."""
        data["codetr_samples"] = [[s.second, s.name, s.milliseconds, s.error] for s in self.samples]
        self.samples.clear()

    def on_worker_report(self, client_id: str, data: dict[str, Any]) -> None:
        """Take a worker's samples."""
        self.samples.extend(Sample(*values) for values in data.get("codetr_samples", []))

    def watch_memory(self) -> None:
        """Sample the memory until the process ends."""
        while True:
            self.memory.sample(len(self.samples))
            gevent.sleep(MEMORY_INTERVAL)


def _on_init(environment: Any, **rest: Any) -> None:
    if not isinstance(environment.runner, WorkerRunner):
        gevent.spawn(RECORDER.watch_memory)


def _on_start(**rest: Any) -> None:
    RECORDER.start = time.monotonic()


def _on_quitting(environment: Any, **rest: Any) -> None:
    if not isinstance(environment.runner, WorkerRunner):
        broken = finish(CONFIG, RECORDER.samples, RECORDER.memory.samples, RECORDER.is_complete)
        environment.process_exit_code = STATUS_LIMIT if broken else 0


RECORDER = Recorder()
events.request.add_listener(RECORDER.on_request)
events.report_to_master.add_listener(RECORDER.on_report_to_master)
events.worker_report.add_listener(RECORDER.on_worker_report)
events.init.add_listener(_on_init)
events.test_start.add_listener(_on_start)
events.quitting.add_listener(_on_quitting)


class _DetectUser(User):
    abstract = True

    def on_start(self) -> None:
        self.scenario = scenarios.Scenario(bad_share=CONFIG.bad_share, seed=random.getrandbits(32))
        self.pool = ClientPool(lambda: connect(CONFIG))

    def on_stop(self) -> None:
        self.pool.close()

    def send_one(self) -> None:
        send(self.pool, self.scenario.next_shot(), CONFIG.protocol, self.environment.events.request.fire)


if CONFIG.arrival == "closed":

    class ClosedUser(_DetectUser):
        """Sends, waits for the answer, thinks."""

        def wait_time(self) -> float:
            """Return the seconds to think."""
            return random.expovariate(1 / CONFIG.think) if CONFIG.think else 0.0

        @task
        def detect(self) -> None:
            """Send one request and wait for it."""
            self.send_one()

else:

    class ArrivalStream(_DetectUser):
        """One stream of arrivals: the next request leaves when it is due, answered or not the one before."""

        def wait_time(self) -> float:
            """Return the seconds until the next arrival."""
            return random.expovariate(CONFIG.peak / STREAMS)

        @task
        def detect(self) -> None:
            """Send one request without waiting for it."""
            gevent.spawn(self.send_one)


class ProfileShape(LoadTestShape):
    """The configured profile as locust's user counts."""

    def tick(self) -> tuple[int, float] | None:
        """Return users and the rate to start them at, or None at the end."""
        load = CONFIG.profile.load_at(CONFIG.progress(self.get_run_time(), len(RECORDER.samples)))
        if load is None:
            RECORDER.is_complete = True
            return None
        users = load if CONFIG.arrival == "closed" else STREAMS * load / CONFIG.peak
        count = max(1, math.ceil(users))
        return count, float(count)
