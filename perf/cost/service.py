"""What a server adds to a real engine: one request at a time, many, and at 70 % of what it can do, in one run.

Beside it stand the things that cannot be avoided: the engine alone, OpenCV's bare decoding and resizing, a server whose
steps do nothing, and that requests which come at random wait for each other, whatever the server.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from builder.pipeline.manifest import load_engine, spec_of, variant_of
from perf.capacity.service import Service
from perf.capacity.simulation import simulate
from perf.connection import Connection
from perf.cost.floor import write_floor
from perf.latency import measure_latency
from perf.machine import header, summary
from perf.pictures import encoded_picture
from perf.preprocess.run import decode_and_resize
from perf.records import write_record
from perf.server.perf_analyzer import Installation, Level, Mode
from perf.server.run import Result, ServerBench
from perf.statistics import summarise
from perf.tables import markdown_table
from serving.contract import DETECTOR, ENSEMBLE, STEPS
from serving.errors import CodetrError
from serving.launch import running_server
from serving.manifest import read_manifest
from serving.preprocess import preprocess

RECORD_NAME = "service.json"
LOADS = (1, 8, 16)  # requests at a time
SHARE = 0.7  # of the highest rate, for requests that come at random and those that come evenly
ARRIVALS: tuple[Mode, ...] = ("rate", "steady")  # at random (Poisson) and evenly spaced
FLOORS = {"hot": "empty steps", "rested": "empty steps that rest"}
LOAD_WORDS = {"concurrency": "at a time", "rate": "a second", "steady": "a second, evenly"}
# What one request may take beside bare decoding and the engine, of eight at a time the share of the engine's own rate,
# and the p99 in p50s at that level.
GOAL_ADDED_MS, GOAL_RATE, GOAL_P99 = 2.0, 0.95, 2.0
DECODERS = 16  # of a server that adds nothing: pictures wait for the engine alone
# Of the CPU between two pictures, as a step rests while the others work: what it had in its caches may be gone then.
REST_SECONDS = 0.01

Record = dict[str, Any]


def measure_service(
    repository: Path,
    name: str,
    installation: Installation,
    seconds: float,
    output: Path,
    on_result: Callable[[Result], object] = lambda result: None,
) -> Record:
    """Measure a repository's engine `name` and a server of it, and return the content of `output`/service.json.

    Raises:
        CodetrError: the engine or the server does not run here.
    """
    manifest = read_manifest(repository, name)
    spec = spec_of(manifest)
    record: Record = {**header("service"), "engine": manifest["engine"], "precision": manifest["precision"]}
    record |= {"width": spec.width, "height": spec.height, "max_batch_size": spec.max_batch_size}
    record["pixels_ms"] = measure_pixels(manifest, seconds)
    (output / "service.md").unlink(missing_ok=True)  # an earlier run's
    levels: list[dict[str, Any]] = []
    record |= {"complete": False, "levels": levels, "floor": {}}
    for result in measure_levels(repository, name, (spec.width, spec.height), installation, seconds, output):
        levels.append(result.to_json())
        write_record(record, output, RECORD_NAME)  # which Ctrl-C keeps
        on_result(result)
    for way, waits in floor_waits(levels).items():
        kept = output / f"floor-{way}"
        result = measure_floor(repository, name, (spec.width, spec.height), installation, seconds, kept, waits)
        record["floor"][way] = {"waits_ms": waits, **result.to_json()}
        write_record(record, output, RECORD_NAME)
    batches = {1, *(round(batch) for batch in (_mean_batch(level) for level in levels) if batch)}
    record["engine_ms"] = measure_engine(repository, name, sorted(batches), seconds)
    record |= {"complete": True, "verdict": verdict(record)}
    write_record(record, output, RECORD_NAME)
    (output / "service.md").write_text(to_markdown(record), encoding="utf-8")
    return record


def measure_pixels(manifest: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """Return the milliseconds of a JPEG of the engine's size.

    They are `bare` with OpenCV alone, `step` by the step's own function, one picture after the other, and `rested` with
    OpenCV alone after `REST_SECONDS`.
    """
    spec, rule = spec_of(manifest), variant_of(manifest).rules.pixels
    data = encoded_picture(spec.width, spec.height, "jpeg")
    canvas = np.empty((spec.height, spec.width, 3), np.uint8)
    calls = {
        "bare": partial(decode_and_resize, data, spec.height, spec.width),
        "step": partial(preprocess, data, spec.height, spec.width, None, rule, canvas=canvas),
    }
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # as in the server
    times = _timed(calls, seconds) | _timed({"rested": calls["bare"]}, seconds, REST_SECONDS)
    cv2.setNumThreads(before)
    return times


def _timed(calls: Mapping[str, Callable[[], object]], seconds: float, rest: float = 0.0) -> dict[str, float]:
    """Return the median milliseconds of calls in turn, each after a rest in seconds, for so many seconds in all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or any(len(spent) < 10 for spent in times.values()):
        for name, call in calls.items():
            time.sleep(rest)
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: 1e3 * summarise(spent).median for name, spent in times.items()}


def measure_engine(repository: Path, name: str, batches: list[int], seconds: float) -> dict[str, float]:
    """Return the engine's milliseconds by batch, without a server: inputs in place, on a GPU by its own clock."""
    manifest = read_manifest(repository, name)
    spec = spec_of(manifest)
    found = {}
    for batch in batches:
        engine = load_engine(repository, name, manifest, batch)  # with a CUDA graph of it, as the server has
        images = np.random.default_rng(0).integers(0, 256, (batch, spec.height, spec.width, 3), dtype=np.uint8)
        sizes = np.tile(np.array([spec.height, spec.width], np.int32), (batch, 1))
        found[str(batch)] = measure_latency(engine.prepare(images, sizes), engine.device, seconds).p50_ms
    return found


def measure_levels(
    repository: Path, name: str, picture: tuple[int, int], installation: Installation, seconds: float, output: Path
) -> Iterator[Result]:
    """Yield the levels of a server of its own: so many requests at a time, then arrivals at a share of that rate."""
    with _serving(repository, name, picture, installation, output / "service") as bench:
        rate = 0.0
        for load in LOADS:
            result = bench.measure(Level(ENSEMBLE, "concurrency", load, 1, seconds), 0)
            rate = max(rate, result.reading.throughput if result.reading else 0.0)
            yield result
        if rate:
            for mode in ARRIVALS:
                yield bench.measure(Level(ENSEMBLE, mode, float(f"{SHARE * rate:.3g}"), 1, seconds), 0)


def floor_waits(levels: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return what steps that do nothing wait, in milliseconds, by way of measuring and the step's name.

    `hot` is not at all; `rested`, for which the level of one request at a time must be there, as long as the steps in
    whose place they stand compute: what the others had in their caches may be gone then.
    """
    alone = [each["steps"] for each in levels if (each["mode"], each["value"]) == ("concurrency", LOADS[0])]
    computed = {step: steps[step]["compute_infer"] for steps in alone for step in STEPS if step in steps}
    return {"hot": {}} | ({"rested": computed} if len(computed) == len(STEPS) else {})


def measure_floor(
    repository: Path,
    name: str,
    picture: tuple[int, int],
    installation: Installation,
    seconds: float,
    output: Path,
    waits: Mapping[str, float],
) -> Result:
    """Return the level of one request at a time of a server as `perf.cost.floor` writes it, its waits included.

    A server that does not start is a level that failed, for what was measured before is worth keeping.
    """
    level = Level(ENSEMBLE, "concurrency", LOADS[0], 1, seconds)
    with tempfile.TemporaryDirectory() as folder:
        empty = write_floor(repository, name, Path(folder, "repository"), waits)
        try:
            with _serving(empty, name, picture, installation, output) as bench:
                return bench.measure(level, 0)
        except CodetrError as error:
            return Result(level, 0, None, error=str(error))


@contextmanager
def _serving(
    repository: Path, name: str, picture: tuple[int, int], installation: Installation, folder: Path
) -> Iterator[ServerBench]:
    """Give what measures a server of its own, which runs meanwhile; its files stay in `folder`."""
    with (
        running_server(repository) as server,
        Connection(server.grpc_url, "grpc", ensemble=name) as connection,
    ):
        configs = connection.model_configs([ENSEMBLE])
        yield ServerBench(installation, connection, server.metrics_url, configs, [picture], folder)


def verdict(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the goals are about; a figure whose level failed is None."""
    by_load = {(level["mode"], level["value"]): level for level in record["levels"] if level["reading"]}
    alone, eight = by_load.get(("concurrency", LOADS[0])), by_load.get(("concurrency", LOADS[1]))
    sixteen = by_load.get(("concurrency", LOADS[2]))
    poisson, steady = (next((level for (mode, _), level in by_load.items() if mode == each), None) for each in ARRIVALS)
    added = None if alone is None else alone["reading"]["p50"] - record["engine_ms"]["1"]
    batch = None if eight is None else _mean_batch(eight)
    own = None if batch is None else 1e3 * round(batch) / record["engine_ms"][str(round(batch))]
    return {
        "added_ms": added,
        "added_to_bare_ms": None if added is None else added - record["pixels_ms"]["bare"],
        **{f"floor_{way}_ms": _floor_ms(record["floor"].get(way)) for way in FLOORS},
        "mean_batch": batch,
        "share_of_engine_rate": None if own is None or eight is None else eight["reading"]["throughput"] / own,
        "p99_in_p50s": _p99_in_p50s(poisson),
        "p99_in_p50s_unavoidable": None if poisson is None else unavoidable(record, poisson["reading"]["throughput"]),
        "p99_in_p50s_steady": _p99_in_p50s(steady),
        "p99_in_p50s_at_sixteen": _p99_in_p50s(sixteen),
    }


def _floor_ms(level: Mapping[str, Any] | None) -> float | None:
    reading = level and level["reading"]
    return float(reading["p50"] - sum(level["waits_ms"].values())) if level and reading else None


def _p99_in_p50s(level: Mapping[str, Any] | None) -> float | None:
    return None if level is None else float(level["reading"]["p99"] / level["reading"]["p50"])


def unavoidable(record: Mapping[str, Any], rate: float) -> float:
    """Return the p99 in p50s of a simulated server that takes bare decoding and the engine, and adds nothing.

    `rate` requests a second come at random, so some find others before them. Batches take what was measured of the
    smallest and the largest.
    """
    seconds = {int(batch): each / 1e3 for batch, each in record["engine_ms"].items()}
    most = max(seconds)
    image = (seconds[most] - seconds[1]) / (most - 1) if most > 1 else 0.0
    service = Service(
        preprocess=record["pixels_ms"]["bare"] / 1e3,
        batch_seconds=seconds[1] - image,
        image_seconds=image,
        max_batch=record["max_batch_size"] if most > 1 else 1,
        postprocess=0.0,
        instances=(DECODERS, 1, 1),
    )
    found = simulate(service, 1, rate)
    return found.p99 / found.p50


def _mean_batch(level: Mapping[str, Any]) -> float | None:
    step = level["steps"].get(DETECTOR)
    return None if step is None or not step["requests"] else max(1.0, step["batch"])


def to_lines(record: Mapping[str, Any]) -> list[str]:
    """Return the verdict as sentences with the goals."""
    found, pixels = record["verdict"], record["pixels_ms"]
    lines = [
        f"engine alone {record['engine_ms']['1']:.2f} ms; bare decoding and resizing {pixels['bare']:.2f} ms, "
        f"with what the step checks and fills {pixels['step']:.2f} ms"
        + (f"; bare after {1e3 * REST_SECONDS:g} ms of rest {pixels['rested']:.2f} ms" if "rested" in pixels else ""),
    ]
    lines += _of_one_request(found)
    if found["share_of_engine_rate"] is not None:
        lines.append(
            f"eight at a time: {found['share_of_engine_rate']:.0%} of the engine's own rate at their mean batch of "
            f"{found['mean_batch']:.1f}; goal {GOAL_RATE:.0%}"
        )
    if found["p99_in_p50s"] is not None:
        ideal, steady = found.get("p99_in_p50s_unavoidable"), found.get("p99_in_p50s_steady")
        lines.append(
            f"at {SHARE:.0%} load p99 is {found['p99_in_p50s']:.2f} times p50; goal {GOAL_P99:g}"
            + (f"; it is {ideal:.2f} where nothing but bare decoding and the engine takes time" if ideal else "")
            + (f"; {steady:.2f} of requests that come evenly" if steady else "")
        )
    if found["p99_in_p50s_at_sixteen"] is not None:
        lines.append(f"sixteen at a time: p99 is {found['p99_in_p50s_at_sixteen']:.2f} times p50")
    return lines


def _of_one_request(found: Mapping[str, Any]) -> list[str]:
    hot, rested = (found.get(f"floor_{way}_ms") for way in FLOORS)
    lines = []
    if hot is not None:
        lines.append(
            f"three empty steps: {hot:.2f} ms"
            + (f"; {rested:.2f} ms where each rests as long as the step it stands for computes" if rested else "")
        )
    if found["added_ms"] is not None:
        floor = rested or hot
        lines.append(
            f"one request adds {found['added_ms']:.2f} ms to the engine, {found['added_to_bare_ms']:.2f} ms more than "
            "bare decoding"
            + (f", of which three empty steps take {floor:.2f}" if floor else "")
            + f"; goal {GOAL_ADDED_MS:g}"
        )
    return lines


def to_markdown(record: Mapping[str, Any]) -> str:
    """Return the result file as Markdown."""
    rows = [_row(level) for level in record["levels"]]
    for way, level in record.get("floor", {}).items():
        load, *figures = _row(level)
        rows.append([f"{load}, {FLOORS[way]}", *figures])
    columns = ["load", "images/s", "p50 ms", "p95 ms", "p99 ms", "preprocess ms", "detector ms", "postprocess ms"]
    title = f"{record['engine']} {record['precision']}, {record['width']}x{record['height']}"
    return "\n".join(
        [
            f"# A server around an engine: {title}",
            "",
            f"`{record['command']}`, {record['time']}  ",
            summary(record["machine"]),
            "",
            "Steps: queue + input + compute + output of a request, from the server's own statistics.",
            "",
            markdown_table(columns, rows),
            "",
            *(f"* {line}" for line in to_lines(record)),
            "",
        ]
    )


def _row(level: Mapping[str, Any]) -> list[str]:
    reading = level["reading"]
    load = f"{level['value']:g} {LOAD_WORDS[level['mode']]}"
    figures = [f"{reading[key]:.2f}" for key in ("throughput", "p50", "p95", "p99")] if reading else [level["error"]]
    steps = [_step(level["steps"], each) for each in ("preprocess", "detector", "postprocess")]
    return [load, *figures, *[""] * (4 - len(figures)), *steps]


def _step(steps: Mapping[str, Any], name: str) -> str:
    step = steps.get(f"{ENSEMBLE}_{name}")
    if step is None:
        return ""
    return " + ".join(f"{step[key]:.2f}" for key in ("queue", "compute_input", "compute_infer", "compute_output"))
