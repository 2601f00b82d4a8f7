"""What faults and floods cost: a server of its own whose steps are killed and stopped, and which is flooded."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codetr_client import contract as public
from perf.machine import header
from perf.pictures import encoded_picture
from perf.records import write_record
from serving.contract import DETECTOR, STEPS
from serving.errors import CodetrError
from serving.health import check_service
from serving.launch import TritonServer, running_server
from serving.stubs import stubs_of

RECORD_NAME = "faults.json"
CLIENTS = 4
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
# A flood: so many requests at once, whose clients wait so long.
FLOOD, FLOOD_SECONDS = 16, 0.4
# Without an error for so long the service is whole.
_QUIET_SECONDS = 3.0
_LIMIT_SECONDS = 120.0


@dataclass(frozen=True)
class Killed:
    """One step that a signal hit under load; seconds from the signal."""

    step: str
    signal: str
    answered: int  # requests answered until the service was whole again
    failed: int
    seconds_to_fault: float | None  # until a check of the service said so, None if it was whole before
    seconds_to_loaded: float  # until Triton said that it had loaded the step anew
    seconds_to_whole: float  # until that, and the end of the last request that failed
    messages: tuple[str, ...]


@dataclass(frozen=True)
class Flooded:
    """Requests that were abandoned after `FLOOD_SECONDS`, and the one that came next."""

    with_deadline: bool  # whether they told the server
    alone_seconds: float  # of one request on the idle server
    abandoned: int
    computed: int  # of them and of those that came next until one was answered, by the detector's own count
    refused_at_once: int
    seconds_to_next: float  # until the next client had its answer, asking again where it was refused


@dataclass(frozen=True)
class Answer:
    """One request: from when to when, on a monotonic clock in seconds, and what was wrong."""

    began: float
    ended: float
    error: str | None


def run(
    repository: Path, output: Path, rounds: int, on_case: Callable[[Killed | Flooded | dict[str, float]], object]
) -> dict[str, Any]:
    """Serve a repository of one engine called `codetr`, do harm to it, and write the record.

    Args:
        repository: what is served.
        output: folder of the record.
        rounds: how often each step gets each signal.
        on_case: called with each result.

    Raises:
        CodetrError: the server cannot be started, or does not recover.
    """
    image = encoded_picture(1280, 720, "jpeg")
    load_average = [os.getloadavg()[0]]
    killed: list[Killed] = []
    flooded: list[Flooded] = []
    with running_server(repository) as server:
        server.watch(lambda line: None)
        for with_deadline in (True, False):
            flooded.append(flood(server, image, with_deadline))
            on_case(flooded[-1])
        for _ in range(rounds):
            for step in STEPS:
                for number in SIGNALS:
                    killed.append(_kill_under_load(server, image, step, number))
                    on_case(killed[-1])
        began = time.monotonic()
        status = server.stop()
        stop = {"seconds": time.monotonic() - began, "status": status}
        on_case(stop)
    record = {
        **header("faults"),
        "load_average": [*load_average, os.getloadavg()[0]],  # of the last minute before, and with the run itself
        "rounds": rounds,
        "clients": CLIENTS,
        "killed": [asdict(each) for each in killed],
        "flooded": [asdict(each) for each in flooded],
        "stop": stop,
    }
    write_record(record, output, RECORD_NAME)
    return record


class Load:
    """Clients that ask one after the other for the length of a block; each failure is followed by a short pause."""

    def __init__(self, server: TritonServer, image: bytes, clients: int = CLIENTS) -> None:
        self.answers: list[Answer] = []
        self._server, self._image = server, image
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with Connection(self._server) as connection:
            while not self._ends.is_set():
                answer = connection.ask(self._image, 60.0, None)
                self.answers.append(answer)
                if answer.error:
                    time.sleep(0.05)


class Connection:
    """A gRPC client with nothing of ours between: no repeats, no deadline unless it is given."""

    def __init__(self, server: TritonServer | str) -> None:
        import tritonclient.grpc

        self._library = tritonclient.grpc
        url = server if isinstance(server, str) else server.grpc_url
        self._client = tritonclient.grpc.InferenceServerClient(url)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def ask(self, image: bytes, timeout: float, deadline: float | None) -> Answer:
        """Ask for one image's detections, and stop listening after `timeout` seconds."""
        from tritonclient.utils import InferenceServerException

        tensor = self._library.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[image]], np.object_))
        parameters = None if deadline is None else {public.DEADLINE_PARAMETER: int((time.time() + deadline) * 1e3)}
        began = time.monotonic()
        error = None
        try:
            self._client.infer(public.ENSEMBLE, [tensor], client_timeout=timeout, parameters=parameters)
        except InferenceServerException as fault:
            error = f"{fault.status()}: {fault.message()}"
        return Answer(began, time.monotonic(), error)

    def computed(self) -> int:
        """Return how many requests the detector has computed."""
        statistics = self._client.get_inference_statistics(DETECTOR).model_stats[0]
        return int(statistics.inference_stats.success.count)


def _kill_under_load(server: TritonServer, image: bytes, step: str, number: signal.Signals) -> Killed:
    def loads() -> int:
        return server.log().count(f"successfully loaded '{step}'")

    victim, loaded = _newest_process(server, step), loads()
    with Load(server, image) as load:
        time.sleep(1.0)
        hit = time.monotonic()
        os.kill(victim, number)
        first_fault: float | None = None
        reloaded: float | None = None
        while reloaded is None or time.monotonic() < max(reloaded, _last_error(load.answers, hit)) + _QUIET_SECONDS:
            if reloaded is None and loads() > loaded:
                reloaded = time.monotonic()
            if first_fault is None and check_service(server.http_url, timeout=30.0):
                first_fault = time.monotonic() - hit
            time.sleep(0.02)
            if time.monotonic() > hit + _LIMIT_SECONDS:
                raise CodetrError(
                    f"{step} was not whole {_LIMIT_SECONDS:g} s after {number.name}; see the server's log"
                )
    whole = max(reloaded, _last_error(load.answers, hit))
    during = [answer for answer in load.answers if hit <= answer.ended <= whole]
    errors = [answer.error for answer in during if answer.error]
    answered = len(during) - len(errors)
    messages = tuple(sorted(set(errors)))
    return Killed(step, number.name, answered, len(errors), first_fault, reloaded - hit, whole - hit, messages)


def _last_error(answers: Sequence[Answer], hit: float) -> float:
    return max([answer.ended for answer in answers if answer.error], default=hit)


def kill_newest(server: TritonServer, step: str) -> None:
    """Kill the newest process of a step."""
    os.kill(_newest_process(server, step), signal.SIGKILL)


def _newest_process(server: TritonServer, step: str) -> int:
    return max((stub.started, stub.pid) for stub in stubs_of(server.process.pid) if stub.model == step)[1]


def flood(server: TritonServer, image: bytes, with_deadline: bool) -> Flooded:
    """Ask `FLOOD` times at once, give up after `FLOOD_SECONDS`, and ask once more."""
    with Connection(server) as connection:
        alone = [connection.ask(image, 600.0, None) for _ in range(3)][-1]
        before = connection.computed()
        deadline = FLOOD_SECONDS if with_deadline else None
        with ThreadPoolExecutor(FLOOD) as pool:
            asked = [pool.submit(connection.ask, image, FLOOD_SECONDS, deadline) for _ in range(FLOOD)]
            answers = [each.result() for each in asked]
        began = time.monotonic()
        while (answer := connection.ask(image, 600.0, None)).error:
            time.sleep(0.1)
        refused = sum("the queue is" in (each.error or "") for each in answers)
        computed = connection.computed() - before - 1
    seconds = answer.ended - began
    return Flooded(with_deadline, alone.ended - alone.began, len(answers), computed, refused, seconds)
