"""What further GPUs of one machine bring: images a second on the first of them and on all, and whether all agree.

Through a server, from encoded pictures to detections; or in processes of their own without one, as Triton's Python
backend has them: each copies its images to its GPU, computes, and copies back.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from codetr_client.aio import AsyncCoDetrClient
from codetr_client.client import CoDetrClient
from perf.machine import header
from perf.pictures import encoded_picture
from perf.records import write_record
from serving.contract import PLUGIN_LIBRARY
from serving.errors import CodetrError
from serving.launch import running_server
from serving.manifest import check_files, read_manifest

PICTURES = 4
PICTURE_SIZE = (640, 480)  # small, so that decoding is not what is measured
WARM_UP_SECONDS = 2.0
# Of a score: other batches are computed by other kernels, whose half precision rounds otherwise.
SCORE_TOLERANCE = 0.02

Way = Literal["server", "processes"]


@dataclass(frozen=True)
class GpuResult:
    """One run.

    Attributes:
        way: through a server, or in processes without one.
        gpus: their numbers.
        concurrency: requests at a time; of processes the images of one inference in each.
        images_per_s: in all.
        largest_difference: of a score from the first GPU's.
        failures: requests that failed, of a server.
        identical: whether each process gives the very numbers of the first GPU; None of a server, whose batches differ.
    """

    way: Way
    gpus: tuple[int, ...]
    concurrency: int
    images_per_s: float
    largest_difference: float
    failures: int = 0
    identical: bool | None = None


def run(
    repository: Path,
    name: str,
    gpus: Sequence[int],
    ways: Sequence[Way],
    concurrency: Sequence[int],
    seconds: float,
    output: Path,
    on_result: Callable[[GpuResult], object] = lambda result: None,
) -> dict[str, Any]:
    """Measure an engine on the first of `gpus` and on all of them; `output`/results.json is rewritten after each run.

    Args:
        repository: of the engine.
        name: of the engine.
        gpus: their numbers; of an engine for CPUs, processes.
        ways: what to measure.
        concurrency: requests at a time.
        seconds: of each run, after its warm-up.
        output: folder of the record.
        on_result: called with each result.

    Raises:
        CodetrError: the engine cannot be run here.
    """
    check_files(repository, name)
    manifest = read_manifest(repository, name)
    record = {**header("gpus"), "engine": {key: manifest.get(key) for key in _TOLD}, "results": []}
    results: list[GpuResult] = []
    for way in ways:
        measure = measure_server if way == "server" else measure_processes
        for result in measure(repository, name, gpus, concurrency, seconds):
            results.append(result)
            record["results"] = [asdict(each) for each in results]
            record["ratios"] = ratios(results)
            write_record(record, output)
            on_result(result)
    return record


_TOLD = ("variant", "engine", "precision", "device", "height", "width", "max_batch_size", "versions", "created")


def ratios(results: Sequence[GpuResult]) -> dict[str, float]:
    """Return images a second on all GPUs over those on the first, by way and concurrency."""
    first = {(each.way, each.concurrency): each for each in results if len(each.gpus) == 1}
    return {
        f"{each.way} {each.concurrency}": each.images_per_s / first[each.way, each.concurrency].images_per_s
        for each in results
        if len(each.gpus) > 1 and first[each.way, each.concurrency].images_per_s
    }


# ---- through a server


def measure_server(
    repository: Path, name: str, gpus: Sequence[int], concurrency: Sequence[int], seconds: float
) -> list[GpuResult]:
    """Return the results through a server, on the first GPU and on all."""
    pictures = [encoded_picture(*PICTURE_SIZE, seed=seed) for seed in range(PICTURES)]
    expected: list[NDArray[np.float32]] = []
    results = []
    for some in (gpus[:1], gpus):
        with running_server(repository, timeout=600, engines=[name], gpus=",".join(map(str, some))) as server:
            if not expected:
                with CoDetrClient(server.grpc_url, class_names=(), model=name) as client:
                    expected = [np.sort(client.detect(picture).scores) for picture in pictures]
            for count in concurrency:
                rate, difference, failures = asyncio.run(ask(server.grpc_url, name, pictures, expected, count, seconds))
                results.append(GpuResult("server", tuple(some), count, rate, difference, failures))
    return results


async def ask(
    url: str,
    name: str,
    pictures: Sequence[bytes],
    expected: Sequence[NDArray[np.float32]],
    concurrency: int,
    seconds: float,
) -> tuple[float, float, int]:
    """Return images a second, the largest difference of a score from `expected`, and how many requests failed."""
    begin = time.monotonic() + WARM_UP_SECONDS
    end = begin + seconds
    answered, failures, difference = 0, 0, 0.0

    async def one(client: AsyncCoDetrClient, place: int) -> None:
        nonlocal answered, failures, difference
        turn = place
        while time.monotonic() < end:
            picture = turn % len(pictures)
            turn += 1
            try:
                found = await client.detect(pictures[picture])
            except CodetrError:
                failures += 1
                continue
            answered += begin <= time.monotonic() < end
            difference = max(difference, _difference(np.sort(found.scores), expected[picture]))

    async with AsyncCoDetrClient(url, class_names=(), model=name, timeout=60) as client:
        await asyncio.gather(*(one(client, place) for place in range(concurrency)))
    return answered / seconds, difference, failures


def _difference(scores: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest difference of sorted scores; where their numbers differ the best are compared."""
    count = min(len(scores), len(expected))
    return float(np.abs(scores[len(scores) - count :] - expected[len(expected) - count :]).max(initial=0.0))


# ---- in processes


def measure_processes(
    repository: Path, name: str, gpus: Sequence[int], concurrency: Sequence[int], seconds: float
) -> list[GpuResult]:
    """Return the results in processes, one for each GPU, on the first GPU and on all; one image at a time."""
    alone = _run_processes(repository, name, gpus[:1], seconds)
    together = _run_processes(repository, name, gpus, seconds)
    expected = alone[0][1]
    results = []
    for some, found in ((gpus[:1], alone), (gpus, together)):
        rate = sum(rate for rate, _ in found)
        pairs = [(outputs, expected) for _, outputs in found]
        difference = max(_difference(np.sort(a[1].ravel()), np.sort(b[1].ravel())) for a, b in pairs)
        identical = all(np.array_equal(x, y) for a, b in pairs for x, y in zip(a, b, strict=True))
        results.append(GpuResult("processes", tuple(some), 1, rate, difference, identical=identical))
    return results


def _run_processes(
    repository: Path, name: str, gpus: Sequence[int], seconds: float
) -> list[tuple[float, list[NDArray[Any]]]]:
    """Return images a second and the outputs for one image, of each GPU."""
    context = multiprocessing.get_context("spawn")
    answers: Queue[Any] = context.Queue()
    barrier = context.Barrier(len(gpus))
    arguments = [(repository, name, gpu, seconds, barrier, answers) for gpu in gpus]
    processes = [context.Process(target=_work, args=each) for each in arguments]
    for process in processes:
        process.start()
    try:
        found = dict(answers.get(timeout=600 + seconds) for _ in processes)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
            process.join()
            process.close()
        answers.close()
    for gpu, answer in found.items():
        if isinstance(answer, str):
            raise CodetrError(f"GPU {gpu}: {answer}")
    return [found[gpu] for gpu in gpus]


def _work(repository: Path, name: str, gpu: int, seconds: float, barrier: Any, answers: Any) -> None:
    try:
        engine = runner(repository, name, gpu)
        manifest = read_manifest(repository, name)
        height, width = manifest["height"], manifest["width"]
        inputs = image(height, width), np.array([[height, width]], np.int32)
        outputs = [np.asarray(each).copy() for each in engine(*inputs)]
        for _ in range(5):
            engine(*inputs)
        barrier.wait(600)
        begin, count = time.monotonic(), 0
        while time.monotonic() < begin + seconds:
            engine(*inputs)
            count += 1
        answers.put((gpu, (count / (time.monotonic() - begin), outputs)))
    except Exception as error:
        barrier.abort()
        answers.put((gpu, f"{type(error).__name__}: {error}"))


def image(height: int, width: int) -> NDArray[np.uint8]:
    """Return a seeded image, uint8 [1, height, width, 3]."""
    return np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)


def runner(repository: Path, name: str, gpu: int) -> Callable[..., Sequence[NDArray[Any]]]:
    """Return what a server's step runs of an engine, on a GPU by its number among those that are visible.

    Raises:
        EngineError, PlanError: it cannot be run here.
    """
    from builder.engines.kinds import engine_kind
    from builder.operators.cuda import LIBRARY_PATTERN
    from builder.pipeline.manifest import device_of, engine_file, load_engine

    manifest = read_manifest(repository, name)
    kind = engine_kind(manifest["engine"])
    file = engine_file(repository, name, kind)
    shape = manifest["height"], manifest["width"]
    if kind.name == "tensorrt":
        from model_repository.plan_runner import CudaDriver, PlanRunner

        plugin = file.parent / PLUGIN_LIBRARY
        return PlanRunner(file, [1], plugin if plugin.is_file() else None, CudaDriver(gpu))
    if kind.name == "torch" and device_of(manifest) == "cuda":
        from model_repository.torch_runner import TorchRunner

        return TorchRunner(file, shape, "cuda", next(file.parent.glob(LIBRARY_PATTERN), None), [1], gpu)
    return cast(Callable[..., Sequence[NDArray[Any]]], load_engine(repository, name, manifest))
