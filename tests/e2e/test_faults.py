"""A real server whose steps die, hang and are flooded; its engine does by an image's first pixel what a test needs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

from codetr_client.client import CoDetrClient
from codetr_client.contract import DEADLINE_PARAMETER, DEADLINE_PASSED
from codetr_client.detections import Detections
from codetr_client.errors import ServiceError
from serving import watchdog
from serving.board import Board
from serving.health import check_service
from serving.launch import TritonServer, free_ports
from serving.runtime import admin_headers, server_folders
from serving.stubs import stubs_of
from tests.e2e.conftest import computed, killed_server
from tests.tiny_engine import write_tiny_repository

pytestmark = pytest.mark.server

SLOW, SLOWER, HANGS = 40, 60, 80  # gray values
FAULTY = f"""
        import time

        first = int(inputs[0][0, 0, 0, 0])
        time.sleep({{{SLOW}: 0.4, {SLOWER}: 1.0, {HANGS}: 3600}}.get(first, 0))
        boxes, scores, labels = self.session"""


def write_faulty_repository(folder: Path) -> Path:
    repository = write_tiny_repository(folder)
    model = repository / "codetr_detector" / "1" / "model.py"
    code = model.read_text()
    changed = code.replace("\n        boxes, scores, labels = self.session", FAULTY)
    assert changed != code
    model.write_text(changed)
    return repository


def png(value: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (96, 64), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def state_of(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A repository that nothing may write to, whatever happens to its server."""
    repository = write_faulty_repository(tmp_path_factory.mktemp("faulty") / "repository")
    before = state_of(repository)
    yield repository
    assert state_of(repository) == before


class Watched:
    """A server under a watchdog, and what that said."""

    def __init__(self, server: TritonServer) -> None:
        self.server = server
        self.said: list[str] = []
        started = server.watch(self.said.append, standstill_seconds=4)
        assert started is not None
        self.watchdog = started

    def process_of(self, step: str) -> psutil.Process:
        """Return the newest living process of a step."""
        alive = []
        for process in psutil.Process(self.server.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # one that was replaced ends at this moment
                if process.status() != psutil.STATUS_ZOMBIE and f"/{step}/" in " ".join(process.cmdline()):
                    alive.append(process)
        return max(alive, key=lambda process: process.create_time())

    def detect(self, value: int = 200) -> Detections:
        with CoDetrClient(self.server.grpc_url, class_names="coco") as client:
            return client.detect(png(value))

    def settle(self) -> None:
        """Wait until the watchdog has looked for longer than it needs to find and end what is replaced by now."""
        looks: list[float] = []
        look = self.watchdog.look

        def noted(now: float) -> None:
            look(now)
            looks.append(now)

        seconds = watchdog._LOOK_FOR_NEW + self.watchdog._superseded + 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.watchdog, "look", noted)
            eventually(lambda: len(looks) > 0 and looks[-1] - looks[0] > seconds)

    def loads_of(self, step: str) -> int:
        return self.server.log().count(f"successfully loaded '{step}'")


@pytest.fixture(scope="module")
def watched(repository: Path) -> Iterator[Watched]:
    with killed_server(repository) as server:
        yield Watched(server)


def eventually(is_so: Callable[[], bool], seconds: float = 180) -> None:
    """Wait for what happens in its own time; a machine under load may take long."""
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it has not happened"
        time.sleep(0.1)


class Load:
    """Clients that ask one after the other until the block ends, and keep every answer."""

    def __init__(self, watched: Watched, clients: int = 3) -> None:
        self.answers: list[Detections | ServiceError] = []
        self._watched = watched
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        while not self._ends.is_set():
            try:
                self.answers.append(self._watched.detect())
            except ServiceError as error:
                self.answers.append(error)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        eventually(lambda: len(self.answers) > 20)
        return self

    def __exit__(self, *error: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    @property
    def errors(self) -> list[str]:
        return [str(answer) for answer in self.answers if not isinstance(answer, Detections)]

    def goes_well(self) -> bool:
        """Return whether the next thirty answers are all detections."""
        count = len(self.answers)
        eventually(lambda: len(self.answers) >= count + 30)
        return all(isinstance(answer, Detections) for answer in self.answers[count : count + 30])


QUICK = [("codetr_detector", signal.SIGKILL), ("codetr_preprocess", signal.SIGSTOP)]
CASES = [
    pytest.param(step, number, id=f"{step}-{number.name}", marks=[] if (step, number) in QUICK else pytest.mark.slow)
    for step in ("codetr_preprocess", "codetr_detector", "codetr_postprocess")
    for number in (signal.SIGKILL, signal.SIGSTOP)
]


@pytest.mark.parametrize(("step", "number"), CASES)
def test_a_step_that_dies_or_is_stopped_is_loaded_anew_under_load(
    watched: Watched, step: str, number: signal.Signals
) -> None:
    victim = watched.process_of(step)
    heard, loaded = len(watched.said), watched.loads_of(step)
    with Load(watched) as load:
        victim.send_signal(number)
        eventually(lambda: watched.loads_of(step) > loaded)
        eventually(load.goes_well)
    assert f"loading {step} anew" in watched.said[heard]
    assert len(watched.said) == heard + 1, "once is enough"
    assert watched.process_of(step).pid != victim.pid
    assert all(f"'{step}_0" in error and "is not healthy" in error for error in load.errors), load.errors
    assert check_service(watched.server.http_url) == []


def test_a_step_that_hangs_is_loaded_anew_and_a_busy_one_is_not(watched: Watched) -> None:
    heard = len(watched.said)
    with ThreadPoolExecutor(48) as pool:
        slow = [pool.submit(watched.detect, SLOW) for _ in range(48)]  # of four at a time, nearly 5 s of work
        assert all(len(each.result()) for each in slow)
    assert watched.said[heard:] == []
    with pytest.raises(ServiceError, match=r"'codetr_detector_0_0' is not healthy"):
        watched.detect(HANGS)
    eventually(lambda: len(watched.said) > heard)  # the client hears of a death before it is told
    assert len(watched.said) == heard + 1
    assert "codetr_detector_0_0 has stood still for" in watched.said[heard]
    eventually(lambda: check_service(watched.server.http_url) == [])
    assert len(watched.detect()) > 0


def request(module: Any, url: str, value: int, timeout: float, deadline: float | None) -> str:
    """Ask as a client of any kind does, and return "answered" or the error."""
    tensor = module.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[png(value)]], np.object_))
    parameters = None if deadline is None else {DEADLINE_PARAMETER: int((time.time() + deadline) * 1000)}
    is_grpc = module is tritonclient.grpc
    options = {} if is_grpc else {"network_timeout": timeout, "connection_timeout": timeout}
    with module.InferenceServerClient(url, **options) as client:
        try:
            client.infer("codetr", [tensor], parameters=parameters, **({"client_timeout": timeout} if is_grpc else {}))
        except (InferenceServerException, OSError) as error:
            return str(error)
    return "answered"


@pytest.mark.parametrize("module", [tritonclient.grpc, tritonclient.http], ids=["grpc", "http"])
def test_requests_that_nobody_waits_for_are_not_computed(watched: Watched, module: Any) -> None:
    server = watched.server
    url = server.grpc_url if module is tritonclient.grpc else server.http_url
    assert request(module, url, SLOWER, 60, None) == "answered"  # the queue learns what an image takes
    before = computed(watched.server)
    with ThreadPoolExecutor(16) as pool:  # a busy machine may bring some when their deadline is over
        answers = [each.result() for each in [pool.submit(request, module, url, SLOWER, 60, 0.6) for _ in range(16)]]
    assert request(module, url, SLOWER, 60, 60) == "answered"
    assert computed(watched.server) - before <= 8, answers  # of 17
    refusals = ("the queue is too long for the deadline", DEADLINE_PASSED)
    assert sum(any(each in answer for each in refusals) for answer in answers) >= 8, answers


def test_a_deadline_that_is_over_is_said_to_be(watched: Watched) -> None:
    before = computed(watched.server)
    answer = request(tritonclient.grpc, watched.server.grpc_url, 200, 60, -1.0)
    assert "UNAVAILABLE" in answer
    assert DEADLINE_PASSED in answer
    assert computed(watched.server) == before


@pytest.mark.parametrize("module", [tritonclient.grpc, tritonclient.http], ids=["grpc", "http"])
def test_nobody_can_load_or_unload_a_model_even_with_the_key(watched: Watched, module: Any) -> None:
    server = watched.server
    protocol = "grpc" if module is tritonclient.grpc else "http"
    url = server.grpc_url if protocol == "grpc" else server.http_url
    headers = admin_headers(url, protocol)
    with module.InferenceServerClient(url) as client:
        assert client.get_model_repository_index(headers=headers)  # the key is right
        for change in (client.unload_model, client.load_model):
            with pytest.raises(InferenceServerException, match="not allowed if polling is enabled"):
                change("codetr_detector", headers=headers)
    assert len(watched.detect()) > 0


def serve(repository: Path, ports: list[int]) -> subprocess.Popen[bytes]:
    """Run `codetr serve` as a user does whose disk is full, and return when it is ready."""
    options = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    command = [str(Path(sys.executable).parent / "codetr"), "serve", "-v", "--repository", str(repository), *options]
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(command, stderr=full)
    try:
        eventually(lambda: check_service(f"127.0.0.1:{ports[0]}") == [])
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


@pytest.fixture
def served(repository: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    """`codetr serve`, ready; its HTTP and its gRPC address."""
    ports = free_ports(3)
    process = serve(repository, ports)
    yield process, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"
    process.terminate()
    process.wait(timeout=300)


def is_at_work(process: subprocess.Popen[bytes]) -> bool:
    """Whether a step of the server that `codetr serve` runs is at work on a request."""
    (folder,) = (folder for folder, record in server_folders() if record.pid == process.pid)
    return any(work.present is not None for work in Board(folder).work().values())


def ask(url: str, value: int) -> Detections | ServiceError:
    try:
        with CoDetrClient(url, class_names="coco") as client:
            return client.detect(png(value))
    except ServiceError as error:
        return error


def ask_until_answered(url: str, value: int = 200) -> Detections:
    """Ask as a client does that repeats what failed."""
    until = time.monotonic() + 300
    while not isinstance(answer := ask(url, value), Detections):
        assert time.monotonic() < until, answer
        time.sleep(0.2)
    return answer


def test_who_asks_again_is_answered_and_an_end_waits_for_what_is_under_way(
    served: tuple[subprocess.Popen[bytes], str, str],
) -> None:
    process, http_url, url = served
    (server,) = psutil.Process(process.pid).children()
    victim = next(child for child in server.children() if "/codetr_detector/" in " ".join(child.cmdline()))
    with ThreadPoolExecutor(9) as pool:
        during = pool.submit(ask, url, HANGS)
        eventually(lambda: is_at_work(process))
        waiting = [pool.submit(ask_until_answered, url) for _ in range(8)]
        victim.kill()
        assert not isinstance(during.result(), Detections)
        assert all(len(each.result()) for each in waiting)
        asked = pool.submit(ask, url, SLOWER)
        eventually(lambda: is_at_work(process))
        with socket.create_connection(tuple(http_url.split(":"))) as kept_open:
            # Triton would wait half a minute for whoever keeps a connection, and then fail.
            kept_open.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert kept_open.recv(4096).startswith(b"HTTP/1.1 200")
            process.terminate()
            assert isinstance(asked.result(), Detections), asked.result()
            assert process.wait(timeout=300) == 0
    assert not server.is_running()


@pytest.mark.slow
def test_who_asks_again_is_answered_by_the_server_that_comes_after_one_that_was_killed(repository: Path) -> None:
    ports = free_ports(3)
    first = serve(repository, ports)
    (server,) = psutil.Process(first.pid).children()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask_until_answered, f"127.0.0.1:{ports[1]}", SLOW) for _ in range(4)]
        eventually(lambda: is_at_work(first))
        server.kill()
        assert first.wait(timeout=300) == 128 + signal.SIGKILL
        second = serve(repository, ports)
        try:
            assert all(len(each.result()) for each in waiting)
        finally:
            second.terminate()
            assert second.wait(timeout=300) == 0


@pytest.mark.slow
def test_a_second_signal_ends_a_server_at_once(served: tuple[subprocess.Popen[bytes], str, str]) -> None:
    process, _, url = served

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, url, HANGS)
        eventually(lambda: is_at_work(process))
        process.send_signal(signal.SIGINT)
        time.sleep(1)
        assert process.poll() is None, "it waits for the request"
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 128 + signal.SIGKILL
        assert isinstance(asked.result(), ServiceError)


@pytest.fixture
def siblings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """A server with two processes of one instance's name, as on two GPUs: here of two groups that have one name."""
    monkeypatch.setattr("serving.watchdog._SUPERSEDED_SECONDS", 2.0)
    repository = write_faulty_repository(tmp_path / "repository")
    config = repository / "codetr_detector" / "config.pbtxt"
    group = 'instance_group { name: "codetr_detector_0" kind: KIND_CPU count: 1 }\n'
    without = re.sub(r"instance_group \{\n(  .*\n)*\}\n", "", config.read_text())
    assert "instance_group" not in without
    config.write_text(without + 2 * group)
    with killed_server(repository) as server:
        monkeypatch.setattr(server, "_load_seconds", 0.0)
        yield Watched(server)


def test_of_two_processes_of_one_name_one_that_dies_is_replaced_with_the_other(siblings: Watched) -> None:
    def of_detector() -> set[int]:
        found = [each for each in stubs_of(siblings.server.process.pid) if each.model == "codetr_detector"]
        assert {each.instance for each in found} <= {"codetr_detector_0_0"}
        return {each.pid for each in found if each.instance}

    before = of_detector()
    assert len(before) == 2
    siblings.settle()
    assert of_detector() == before
    assert siblings.said == []
    siblings.process_of("codetr_detector").kill()
    eventually(lambda: siblings.loads_of("codetr_detector") > 1)
    eventually(lambda: len(of_detector() - before) == 2)
    eventually(lambda: of_detector().isdisjoint(before))
    after = of_detector()
    siblings.settle()
    assert of_detector() == after
    assert siblings.said == ["codetr_detector_0_0 has died: loading codetr_detector anew"]
    assert len(siblings.detect()) > 0
