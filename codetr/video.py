"""Detection over the frames of a video: several under way, answers in order, an annotated video and JSON lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from codetr.video_output import LineFile, VideoFile, check_outputs
from codetr.video_source import Frame, VideoSource
from codetr_client.detections import Detections
from codetr_client.drawing import draw
from codetr_client.files import FATAL_ERRORS, Detector
from codetr_client.outputs import make_folder
from serving.errors import CodetrError

# Less than a fifth of PNG's bytes and a tenth of its time; nearly every video is itself compressed harder than this.
JPEG_QUALITY = 95


@dataclass(frozen=True, eq=False)
class Answer:
    """A frame, annotated if it was detected on, with its detections or its error."""

    frame: Frame
    result: Detections | CodetrError

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        known = {"frame": self.frame.number, "seconds": round(self.frame.seconds, 6)}
        if isinstance(self.result, CodetrError):
            return {**known, "error": str(self.result)}
        return {**known, "detections": self.result.to_json()}


@dataclass(frozen=True)
class Pace:
    """How a video is gone through: each `every`th frame, `max_frames` of them, `concurrency` under way at a time."""

    every: int
    max_frames: int | None
    concurrency: int

    def planned(self, count: int | None) -> int | None:
        """Return how many frames that is, of a source with `count` frames; None if nobody knows."""
        known = [self.max_frames, None if count is None else -(-count // self.every)]
        return min((frames for frames in known if frames is not None), default=None)


def detect_video(
    client: Detector,
    source: VideoSource,
    output: Path,
    score_threshold: float | None,
    pace: Pace,
    on_answer: Callable[[Answer], None] = lambda answer: None,
) -> None:
    """Detect on the frames of a video; write `STEM.mp4` and `STEM.jsonl` to `output`.

    Frames of a file wait for their turn; those of a live source are dropped when newer ones have come, and the
    annotated video shows the last picture in their place. A frame that fails is shown without boxes, and the rest goes
    on. A server that is gone ends the run with its error; then, and at Ctrl-C, what was answered so far is kept.
    `on_answer` hears of each answer. How the source ended, it says itself.

    Raises:
        CodetrError: something would be overwritten that no earlier run wrote; the server is gone; or something cannot
            be written.
    """
    make_folder(output)
    video, lines = output / f"{source.stem}.mp4", output / f"{source.stem}.jsonl"
    check_outputs(video, lines, Path(source.name))
    rate = max(source.rate / pace.every, 0.1)  # OpenCV rounds slower ones to 0
    # Of a file some more than are under way, so that nobody waits for the slowest; of a live source they would age.
    alive = pace.concurrency if source.is_live else 2 * pace.concurrency
    with ExitStack() as stack:
        frames = stack.enter_context(closing(source.frames(pace.every)))
        found = _answers(client, islice(frames, pace.max_frames), score_threshold, pace.concurrency, alive)
        line_file: LineFile | None = None
        for answer in stack.enter_context(closing(found)):
            if line_file is None:  # a source without a frame leaves what an earlier run wrote
                line_file = LineFile(lines)
                stack.callback(line_file.close)
                video_file = VideoFile(video, rate, answer.frame.pixels)
                stack.callback(video_file.close)
            line_file.write(answer.to_json())
            video_file.write(answer.frame.pixels, round(answer.frame.seconds * rate) if source.is_live else 0)
            on_answer(answer)


def _answers(
    client: Detector, frames: Iterable[Frame], score_threshold: float | None, concurrency: int, alive: int
) -> Generator[Answer, None, None]:
    """Yield the answers in the order of their frames, of which no more than `alive` are held."""
    pending: deque[Future[Answer]] = deque()
    pool = ThreadPoolExecutor(concurrency)
    try:
        for frame in frames:
            pending.append(pool.submit(_answer, client, frame, score_threshold))
            while pending and (len(pending) >= alive or pending[0].done()):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _answer(client: Detector, frame: Frame, score_threshold: float | None) -> Answer:
    import cv2

    try:
        is_encoded, jpeg = cv2.imencode(".jpg", frame.pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not is_encoded:
            height, width = frame.pixels.shape[:2]
            raise CodetrError(f"a frame of {width}x{height} does not fit into a JPEG; expected at most 65500 a side")
        found = client.detect(jpeg.tobytes(), score_threshold)
    except FATAL_ERRORS:
        raise
    except CodetrError as error:
        return Answer(frame, error)
    drawn = draw(np.ascontiguousarray(frame.pixels[:, :, ::-1]), found)
    pixels = np.ascontiguousarray(np.asarray(drawn)[:, :, ::-1])
    return Answer(Frame(frame.number, frame.seconds, pixels), found)
