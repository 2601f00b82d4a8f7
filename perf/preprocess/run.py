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
from serving.postprocess import PostprocessSettings, postprocess
from serving.preprocess import preprocess

# Width, height of the pictures: VGA, 1080p, 12 megapixels of a phone.
PICTURE_SIZES = ((640, 480), (1920, 1080), (4000, 3000))
# What 1080p JPEGs must reach, as a share of OpenCV's bare decode + resize.
GOAL_SHARE = 0.8
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


def run(
    engine_size: tuple[int, int],
    formats: Sequence[Format],
    counts: Sequence[int],
    seconds: float,
    output: Path,
    on_case: Callable[[PreprocessCase | PostprocessCase], None],
) -> dict[str, Any]:
    """Measure both steps, write `preprocess.json` and `preprocess.md` to `output`, and return the JSON's content.

    Ctrl-C ends the measuring; what was measured is written all the same. `on_case` hears of each case as it comes.
    """
    steps: list[PreprocessCase] = []
    posts: list[PostprocessCase] = []
    try:
        for step in measure_preprocess(engine_size, formats, seconds):
            steps.append(step)
            on_case(step)
        for post in measure_postprocess(counts, ("soft", "hard"), seconds):
            posts.append(post)
            on_case(post)
    except KeyboardInterrupt:
        print("interrupted: writing what was measured")
    record = to_record(engine_size, steps, posts)
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


def alternate(calls: Sequence[Callable[[], Any]], seconds: float, minimum: int = 5) -> list[Summary]:
    """Run `calls` in turn for `seconds` and at least `minimum` rounds; summarise each one's CPU seconds a call."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < minimum:
        for call, spent in zip(calls, times, strict=True):
            start = time.thread_time()
            call()
            spent.append(time.thread_time() - start)
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
    engine_size: tuple[int, int], steps: Sequence[PreprocessCase], posts: Sequence[PostprocessCase]
) -> dict[str, Any]:
    """Return the result file's content; JSON-ready."""
    return {
        **header("preprocess"),
        "engine_width": engine_size[0],
        "engine_height": engine_size[1],
        "preprocess": [{**asdict(case), "share": case.share} for case in steps],
        "postprocess": [asdict(case) for case in posts],
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
