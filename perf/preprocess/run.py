"""How fast the server's own steps are, apart from any server: pre-processing a core, post-processing a call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from perf.machine import header, summary
from perf.pictures import Format, encoded_picture
from perf.records import write_record
from perf.statistics import Summary, summarise
from perf.tables import markdown_table
from serving.decode import Image8, ImageLimits
from serving.errors import CodetrError
from serving.gpu_decode import GpuPreprocessor
from serving.postprocess import PostprocessSettings, postprocess
from serving.preprocess import preprocess
from serving.rules import Pixels

# Width, height of the pictures: VGA, 1080p, 12 megapixels of a phone.
PICTURE_SIZES = ((640, 480), (1920, 1080), (4000, 3000))
# What 1080p JPEGs must reach, as a share of OpenCV's bare decode + resize.
GOAL_SHARE = 0.8
_ON_GPU = ["JPEGs decoded and resized on a GPU, one at a time: medians of wall time.", ""]
_GPU_HEADINGS = ["picture", "kB", "ms", "decode", "resize", "cut files accepted", "on the CPU", "pixels apart, of 255"]
GOAL_CASE: tuple[Format, int, int] = ("jpeg", 1920, 1080)


@dataclass(frozen=True)
class PreprocessCase:
    """One format and size: images a second on one core, beside OpenCV doing only decode + resize."""

    image_format: Format
    width: int
    height: int
    encoded_bytes: int
    images_per_s: float
    spread: float  # relative, of ours
    opencv_images_per_s: float
    opencv_spread: float
    repeats: int

    @property
    def share(self) -> float:
        """Our throughput over OpenCV's."""
        return self.images_per_s / self.opencv_images_per_s


@dataclass(frozen=True)
class PostprocessCase:
    """One number of candidates and kind of NMS: milliseconds a call on one core."""

    candidates: int
    nms: Literal["soft", "hard", "none"]
    detections: int
    milliseconds: float
    spread: float
    repeats: int


@dataclass(frozen=True)
class GpuCase:
    """A JPEG decoded and resized on a GPU: milliseconds of wall time a picture, one at a time, beside the CPU's way."""

    width: int
    height: int
    encoded_bytes: int
    gpu_ms: float
    spread: float  # relative
    gpu_decode_ms: float  # of `gpu_ms`
    gpu_resize_ms: float
    unchecked_ms: float  # where files that are cut short are accepted, so that no CPU looks for their end
    cpu_ms: float
    mean_difference: float  # of a pixel, of 255, from the CPU's
    max_difference: int
    repeats: int


def run(
    engine_size: tuple[int, int],
    formats: Sequence[Format],
    counts: Sequence[int],
    seconds: float,
    output: Path,
    on_case: Callable[[PreprocessCase | PostprocessCase | GpuCase], None],
    jpeg_decoder: Literal["cpu", "gpu"] = "cpu",
) -> dict[str, Any]:
    """Measure both steps, write `preprocess.json` and `preprocess.md` to `output`, and return the JSON's content.

    With `jpeg_decoder` at gpu decoding on the first GPU is measured too.
    Ctrl-C ends the measuring; what was measured is written all the same. `on_case` hears of each case as it comes.

    Raises:
        CodetrError: decoding on a GPU is asked for, and there is none, or its libraries are missing.
    """
    steps: list[PreprocessCase] = []
    posts: list[PostprocessCase] = []
    on_gpu: list[GpuCase] = []
    try:
        for case in measure_gpu(engine_size, seconds) if jpeg_decoder == "gpu" else ():
            on_gpu.append(case)
            on_case(case)
        for step in measure_preprocess(engine_size, formats, seconds):
            steps.append(step)
            on_case(step)
        for post in measure_postprocess(counts, ("soft", "hard"), seconds):
            posts.append(post)
            on_case(post)
    except KeyboardInterrupt:
        print("interrupted: writing what was measured")
    record = to_record(engine_size, steps, posts, on_gpu)
    write(record, output)
    return record


def measure_preprocess(
    engine_size: tuple[int, int], formats: Sequence[Format], seconds: float
) -> Iterator[PreprocessCase]:
    """Yield a case for every format and picture size, each measured for about `seconds`.

    `engine_size` is (width, height). Both sides run on one thread, alternately, so that what else the machine does
    meets both; times are the thread's CPU time, because a busy neighbour must not count as our work.
    """
    width, height = engine_size
    for picture_width, picture_height in PICTURE_SIZES:
        for image_format in formats:
            data = encoded_picture(picture_width, picture_height, image_format)
            with _one_thread():
                ours, bare = alternate(
                    [partial(preprocess, data, height, width), partial(decode_and_resize, data, height, width)], seconds
                )
            yield PreprocessCase(
                image_format, picture_width, picture_height, len(data),
                1 / ours.median, ours.spread, 1 / bare.median, bare.spread, ours.count,
            )  # fmt: skip


def measure_gpu(engine_size: tuple[int, int], seconds: float, device: int | None = 0) -> Iterator[GpuCase]:
    """Yield a case for every picture size; `device` is as that of `serving.gpu_decode.GpuPreprocessor`."""
    width, height = engine_size
    checks, trusts = (
        GpuPreprocessor(height, width, ImageLimits(damaged_jpeg=on_damage), Pixels(), device)
        for on_damage in ("refuse", "accept")
    )
    canvas = np.empty((height, width, 3), np.uint8)
    for picture_width, picture_height in PICTURE_SIZES:
        data = encoded_picture(picture_width, picture_height)
        took = _Took()
        expected = preprocess(data, height, width).images
        apart = np.abs(_found(checks, data, canvas).astype(np.int16) - expected)
        with _one_thread():
            checked, unchecked, on_cpu = alternate(
                [
                    partial(checks, data, canvas, took.add),
                    partial(trusts, data, canvas),
                    partial(preprocess, data, height, width, canvas=canvas),
                ],
                seconds,
                clock=time.perf_counter,
            )
        yield GpuCase(
            picture_width, picture_height, len(data),
            checked.median * 1e3, checked.spread, took.median_ms("decode"), took.median_ms("resize"),
            unchecked.median * 1e3, on_cpu.median * 1e3,
            float(apart.mean()), int(apart.max()), checked.count,
        )  # fmt: skip


class _Took:
    """What the stages of calls took."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def add(self, stage: str, seconds: float) -> None:
        self.seconds.setdefault(stage, []).append(seconds)

    def median_ms(self, stage: str) -> float:
        return summarise(self.seconds[stage]).median * 1e3


def _found(preprocessor: GpuPreprocessor, data: bytes, canvas: Image8) -> Image8:
    found = preprocessor(data, canvas)
    if found is None:
        raise CodetrError("the GPU left the picture to the CPU: it cannot decode it, or has no memory left")
    return found.images


def decode_and_resize(data: bytes, height: int, width: int) -> Any:
    """Do with OpenCV alone what cannot be avoided: decode, and resize to fit (BGR, no checks, no padding)."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    h, w = pixels.shape[:2]
    scale = min(width / w, height / h)
    return cv2.resize(pixels, (round(w * scale), round(h * scale)), interpolation=cv2.INTER_LINEAR)


def measure_postprocess(
    counts: Sequence[int], kinds: Sequence[Literal["soft", "hard", "none"]], seconds: float
) -> Iterator[PostprocessCase]:
    """Yield a case for every number of candidates and kind of NMS, each measured for about `seconds`."""
    for count in counts:
        boxes, scores, labels = candidates(count)
        for nms in kinds:
            settings = PostprocessSettings(nms=nms, max_detections=count)
            call = partial(postprocess, boxes, scores, labels, (1080, 1920), settings)
            with _one_thread():
                (timed,) = alternate([call], seconds)
            yield PostprocessCase(count, nms, call().num_detections, timed.median * 1e3, timed.spread, timed.count)


def candidates(count: int, seed: int = 0) -> tuple[Any, Any, Any]:
    """Return seeded candidates as a detector makes them: clusters of overlapping boxes, scores mostly low.

    boxes float32 [count, 4] in 0..1, scores float32 [count] descending, labels int32 [count].
    """
    random = np.random.default_rng(seed)
    objects = random.uniform(0.1, 0.9, size=(max(1, count // 6), 2))
    centres = objects[random.integers(len(objects), size=count)] + random.normal(scale=0.01, size=(count, 2))
    sides = random.uniform(0.05, 0.1, size=(count, 2))
    boxes = np.clip(np.concatenate([centres - sides, centres + sides], axis=1), 0, 1).astype(np.float32)
    scores = np.sort(random.beta(0.5, 4, size=count))[::-1].astype(np.float32)
    return boxes, scores, random.integers(0, 4, size=count, dtype=np.int32)


def alternate(
    calls: Sequence[Callable[[], Any]],
    seconds: float,
    minimum: int = 5,
    clock: Callable[[], float] = time.thread_time,
) -> list[Summary]:
    """Run `calls` in turn for `seconds` and at least `minimum` rounds; summarise each one's seconds by `clock`."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < minimum:
        for call, spent in zip(calls, times, strict=True):
            start = clock()
            call()
            spent.append(clock() - start)
    return [summarise(spent) for spent in times]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def to_record(
    engine_size: tuple[int, int],
    steps: Sequence[PreprocessCase],
    posts: Sequence[PostprocessCase],
    on_gpu: Sequence[GpuCase] = (),
) -> dict[str, Any]:
    """Return the result file's content; JSON-ready."""
    return {
        **header("preprocess"),
        "engine_width": engine_size[0],
        "engine_height": engine_size[1],
        "preprocess": [{**asdict(case), "share": case.share} for case in steps],
        "postprocess": [asdict(case) for case in posts],
        "jpeg_decoder_gpu": [asdict(case) for case in on_gpu],
        "goal_share": GOAL_SHARE,
    }


def to_markdown(record: dict[str, Any]) -> str:
    """Return the result file as Markdown."""
    steps = [
        [
            case["image_format"], f"{case['width']}x{case['height']}", f"{case['encoded_bytes'] / 1e3:.0f}",
            f"{case['images_per_s']:.1f} ± {case['spread']:.0%}",
            f"{case['opencv_images_per_s']:.1f} ± {case['opencv_spread']:.0%}", f"{case['share']:.0%}",
        ]
        for case in record["preprocess"]
    ]  # fmt: skip
    posts = [
        [
            str(case["candidates"]), case["nms"], str(case["detections"]),
            f"{case['milliseconds']:.3f} ± {case['spread']:.0%}",
        ]
        for case in record["postprocess"]
    ]  # fmt: skip
    on_gpu = [
        [
            f"{case['width']}x{case['height']}", f"{case['encoded_bytes'] / 1e3:.0f}",
            f"{case['gpu_ms']:.2f} ± {case['spread']:.0%}", f"{case['gpu_decode_ms']:.2f}",
            f"{case['gpu_resize_ms']:.2f}", f"{case['unchecked_ms']:.2f}", f"{case['cpu_ms']:.2f}",
            f"{case['mean_difference']:.2g}, at most {case['max_difference']}",
        ]
        for case in record["jpeg_decoder_gpu"]
    ]  # fmt: skip
    return "\n".join(
        [
            "# Pre- and post-processing on one core",
            "",
            f"`{record['command']}`, {record['time']}  ",
            summary(record["machine"]),
            "",
            f"Decode, resize and pad to {record['engine_width']}x{record['engine_height']}; medians of CPU time of one "
            "thread, ± robust relative standard deviation. OpenCV: `imdecode` and `resize`, nothing else. "
            + goal_verdict(record),
            "",
            markdown_table(["format", "picture", "kB", "images/s/core", "OpenCV images/s/core", "share"], steps),
            "",
            markdown_table(["candidates", "NMS", "detections", "ms/call"], posts),
            "",
            *([*_ON_GPU, markdown_table(_GPU_HEADINGS, on_gpu), ""] if on_gpu else []),
        ]
    )


def goal_verdict(record: dict[str, Any]) -> str:
    """Return a sentence on the goal; '' if its picture was not measured."""
    shares = [
        case["share"]
        for case in record["preprocess"]
        if (case["image_format"], case["width"], case["height"]) == GOAL_CASE
    ]
    if not shares:
        return ""
    verdict = "reached" if shares[0] >= record["goal_share"] else "missed"
    return (
        f"Goal for 1080p JPEGs: {record['goal_share']:.0%} of OpenCV's bare decode + resize; {verdict} with "
        f"{shares[0]:.0%}."
    )


def write(record: dict[str, Any], output: Path) -> None:
    """Write `preprocess.json` and `preprocess.md` to `output`."""
    write_record(record, output, "preprocess.json")
    (output / "preprocess.md").write_text(to_markdown(record), encoding="utf-8")
