"""Sends mutated files to a real server and compares every answer with what the same file gives in a process alone.

The server's detector spells the digest of what it was given, so a wrong image, or a neighbour's, is seen at once.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil

from builder.engines.kinds import BuiltEngine, EngineKind
from builder.pipeline.export import InputSpec
from builder.pipeline.repository import CANDIDATES, INPUTS, write_repository
from builder.variants import SwinConfig, Variant
from codetr_client.aio import AsyncCoDetrClient
from codetr_client.detections import Detections
from codetr_client.errors import RequestRefusedError, ServiceError
from codetr_client.outputs import make_folder, write_whole
from perf.fuzz.outcomes import message_fault
from perf.fuzz.pieces import FORMATS
from perf.fuzz.run import FAULTS_FOLDER, keep_fault, times
from perf.fuzz.sandbox import Kept, Limits, Made, Result, judged
from perf.fuzz.sources import sources
from perf.load.monitor import MemoryMonitor, named_processes
from perf.machine import header
from perf.records import write_record
from serving.contract import ENSEMBLE
from serving.launch import TritonServer, running_server
from serving.rules import Rules, Suppression

RECORD = "fuzz-server.json"
MODEL = Path(__file__).with_name("echo_model.py")
ECHO = EngineKind("echo", "echo.json", "configs/onnx.pbtxt", MODEL, ("float32",), ("cpu",))
DIGEST_BYTES = 32
MAX_BATCH_SIZE = 4
IN_FLIGHT = 6  # requests, of each protocol: enough that they queue up behind each other and share batches
GOOD_SHARE = 0.25  # of the images, whole files between the mutated ones


def write_echo_repository(destination: Path) -> Path:
    """Write a repository as `codetr build` does, but for a detector that spells what it was given."""
    names = tuple(f"byte {k}" for k in range(DIGEST_BYTES))
    rules = Rules(Limits().rule, Suppression("none"))
    variant = Variant(
        "echo", SwinConfig(), num_classes=DIGEST_BYTES, num_queries=1, max_detections=DIGEST_BYTES, class_names=names,
        rules=rules,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, ECHO.file_name)
        file.write_text(json.dumps({}) + "\n", encoding="utf-8")
        engine = BuiltEngine(file, ECHO, "cpu", INPUTS, CANDIDATES)
        return write_repository(destination, engine, variant, InputSpec(*Limits().size, MAX_BATCH_SIZE), {})


def spelled(found: Detections) -> str:
    """Return what an answer spells, in the form of `perf.fuzz.outcomes.digest`."""
    values = dict(zip(found.labels.tolist(), np.round(found.scores * 512 - 1).astype(int).tolist(), strict=True))
    content = bytes(values.get(place, 0) for place in range(DIGEST_BYTES)).hex()
    width, height = found.boxes[0, 2:].astype(int).tolist() if len(found) else (0, 0)
    return f"{content} {height}x{width}"


@dataclass(frozen=True)
class Answer:
    """A request's images, what the server made of them, and the seconds it took; `fault` says what is wrong."""

    images: Sequence[Result]
    kind: str  # accepted, refused, busy, fault
    fault: str | None
    seconds: float


def run_through_server(
    files: int, seed: int, output: Path, on_progress: Callable[[int, int], object] = lambda done, faults: None
) -> dict[str, Any]:
    """Send `files` mutated files, between whole ones, and return the content of `output`/fuzz-server.json.

    Args:
        files: of all formats together.
        seed: decides the files, and which of them share a request.
        output: gets the record, and the files of requests whose answer was wrong.
        on_progress: called with the requests answered and the faults found until then.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(write_echo_repository(Path(folder, "repository"))) as server,
    ):
        before = processes(server)
        monitor = MemoryMonitor(psutil.Process(server.process.pid))
        answers = ask(server, files, seed, monitor, on_progress)
        ended = sorted(before - processes(server))
        ready = server.is_ready()
    for answer in answers:
        if answer.fault:
            _keep(output, answer)
    record = to_record(seed, files, answers, monitor, ended, ready)
    write_record(record, output, RECORD)
    return record


def ask(
    server: TritonServer,
    files: int,
    seed: int,
    monitor: MemoryMonitor,
    on_progress: Callable[[int, int], object] = lambda done, faults: None,
) -> list[Answer]:
    """Send mutated files to a server of `write_echo_repository`, and return its answers, each compared."""
    expected = list(judged(_files(files, seed), Limits()))
    requests = list(_requests(expected, Random(f"requests {seed}")))
    return asyncio.run(_ask(server, requests, monitor, on_progress))


def _files(files: int, seed: int) -> list[Made | Kept]:
    """Return mutated files of all formats in turn, with whole ones between them."""
    random = Random(f"good {seed}")
    whole = [Kept(f"{form}: {kind}", data) for form, kinds in sources().items() for kind, data in kinds.items()]
    made: list[Made | Kept] = []
    for number in range(files):
        made.append(Made(FORMATS[number % len(FORMATS)], seed, number))
        if random.random() < GOOD_SHARE:
            made.append(random.choice(whole))
    return made


def _requests(files: Sequence[Result], random: Random) -> Iterator[list[Result]]:
    """Yield the files in requests of one to MAX_BATCH_SIZE images, most of one."""
    at = 0
    while at < len(files):
        count = random.choice((1, 1, 1, 1, 2, MAX_BATCH_SIZE))
        yield list(files[at : at + count])
        at += count


async def _ask(
    server: TritonServer,
    requests: Sequence[Sequence[Result]],
    monitor: MemoryMonitor,
    on_progress: Callable[[int, int], object],
) -> list[Answer]:
    waiting = iter(requests)
    answers: list[Answer] = []

    async def ask(client: AsyncCoDetrClient) -> None:
        for images in waiting:
            answers.append(await _answer(client, images))
            on_progress(len(answers), sum(1 for answer in answers if answer.fault))
            if len(answers) % 100 == 0:
                await asyncio.to_thread(monitor.sample, len(answers))

    async with (
        AsyncCoDetrClient(server.grpc_url, "grpc", timeout=120) as grpc,
        AsyncCoDetrClient(server.http_url, "http", timeout=120) as http,
    ):
        await asyncio.gather(*(ask(client) for client in (grpc, http) for _ in range(IN_FLIGHT)))
    return answers


async def _answer(client: AsyncCoDetrClient, images: Sequence[Result]) -> Answer:
    started = time.perf_counter()
    try:
        found = await client.detect_batch([image.file.data() for image in images])
        kind, fault = "accepted", _difference(images, found)
    except RequestRefusedError as error:
        kind, fault = "refused", _wrong_refusal(images, str(error))
    except ServiceError as error:
        kind, fault = "failed", f"{type(error).__name__}: {error}"
    return Answer(images, kind, fault, time.perf_counter() - started)


def _difference(images: Sequence[Result], found: Sequence[Detections]) -> str | None:
    for index, (image, detections) in enumerate(zip(images, found, strict=True)):
        if image.outcome.kind != "accepted":
            return f"image {index} was answered, although a process alone has {image.outcome.kind}"
        if spelled(detections) != image.outcome.digest:
            return f"image {index} has the answer of another one: {spelled(detections)}, not {image.outcome.digest}"
    return None


def _wrong_refusal(images: Sequence[Result], message: str) -> str | None:
    index, first = next(
        ((index, each) for index, each in enumerate(images) if each.outcome.kind != "accepted"), (0, None)
    )
    if first is None:
        return f"refused, although each alone is accepted: {message}"
    expected = first.outcome.message if len(images) == 1 else f"image {index} of {len(images)}: {first.outcome.message}"
    message = message.removeprefix(f"in ensemble '{ENSEMBLE}', ")  # Triton's own words
    if message.split() != expected.split():  # a client makes blanks one
        return f"refused with another message: {message!r}, not {expected!r}"
    return message_fault(message)


def processes(server: TritonServer) -> set[str]:
    """Return the server's processes as 'name pid'; one that was started again has another pid."""
    named = named_processes(psutil.Process(server.process.pid))
    return {f"{name} {each.pid}" for name, each in named.items()}


def _keep(output: Path, answer: Answer) -> None:
    for image in answer.images:
        if isinstance(image.file, Made):
            keep_fault(output, image, "server")
        else:
            make_folder(output / FAULTS_FOLDER)
            write_whole(output / FAULTS_FOLDER / image.file.name.replace("/", "-"), image.file.content)


def to_record(
    seed: int, files: int, answers: Sequence[Answer], monitor: MemoryMonitor, ended: Sequence[str], ready: bool
) -> dict[str, Any]:
    """Return the content of fuzz-server.json; JSON-ready."""
    kinds = Counter(answer.kind for answer in answers)
    faults = [answer for answer in answers if answer.fault]
    steps: dict[str, float] = {}
    for sample in monitor.samples:
        for name, memory in sample.processes.items():
            steps[name] = max(steps.get(name, 0.0), memory.rss)
    return {
        **header("fuzz server"),
        "seed": seed,
        "mutated_files": files,
        "images": sum(len(answer.images) for answer in answers),
        "requests": len(answers),
        "in_flight": 2 * IN_FLIGHT,
        "answers": dict(kinds),
        "faults": len(faults) + len(ended) + (not ready),
        "processes_ended": list(ended),
        "ready_afterwards": ready,
        "seconds": times([answer.seconds for answer in answers]),
        "peak_memory_mb": {name: round(value) for name, value in steps.items()},
        "what_failed": [answer.fault for answer in faults][:50],
    }
