from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from codetr import video, video_source
from codetr.video import Answer, Pace, detect_video
from codetr.video_source import Frame, VideoSource
from codetr_client.detections import Detections
from codetr_client.errors import RequestRefusedError, ServerUnreachableError
from serving.errors import CodetrError
from tests.videos import frame_pixels, number_of, read_video, write_video

ALL = Pace(every=1, max_frames=None, concurrency=4)


def found(number: int) -> Detections:
    """One white box whose label is the frame's number."""
    box = np.array([[40, 4, 60, 20]], np.float32)
    return Detections(box, np.array([0.5], np.float32), np.array([number], np.int32), (f"n{number}",))


class StubClient:
    """Stands for `CoDetrClient`: finds in each frame the number that it shows."""

    def __init__(self, before: Callable[[int], None] = lambda number: None) -> None:
        self.before = before
        self.asked: list[tuple[int, float | None]] = []

    def detect(self, image: Any, score_threshold: float | None = None) -> Detections:
        assert image.startswith(b"\xff\xd8"), "a JPEG"
        number = number_of(cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR))
        self.asked.append((number, score_threshold))
        self.before(number)
        return found(number)


def run(path: Path, client: StubClient, pace: Pace = ALL, **options: Any) -> None:
    with VideoSource(str(path)) as source:
        detect_video(client, source, path.parent / "out", 0.3, pace, **options)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "a.jsonl").read_text().splitlines()]


def is_annotated(pixels: np.ndarray) -> bool:
    """Whether there is colour where the box of `found` is; the frames are gray there."""
    place = pixels[:24, 34:].astype(int)
    return int((place.max(axis=2) - place.min(axis=2)).max()) > 40


def test_every_frame_is_answered_in_order_and_drawn(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 20)
    client = StubClient()
    run(tmp_path / "a.mp4", client)
    assert [line["frame"] for line in lines(tmp_path)] == list(range(20))
    assert [line["detections"][0]["label"] for line in lines(tmp_path)] == list(range(20))
    assert lines(tmp_path)[5] == {"frame": 5, "seconds": 0.2, "detections": found(5).to_json()}
    assert sorted(client.asked) == [(number, 0.3) for number in range(20)]
    pictures = read_video(tmp_path / "out" / "a.mp4")
    assert [number_of(picture) for picture in pictures] == list(range(20))
    assert all(map(is_annotated, pictures))
    assert not any(map(is_annotated, read_video(tmp_path / "a.mp4"))), "or this test sees nothing"


def test_answers_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 12)
    answered = [threading.Event() for _ in range(12)]
    done: list[int] = []

    def before(number: int) -> None:
        if number % 4 == 0:  # the first of four is answered when the three behind it are
            assert all(event.wait(60) for event in answered[number + 1 : number + 4])
        done.append(number)
        answered[number].set()

    run(tmp_path / "a.mp4", StubClient(before))
    assert done != sorted(done), "or nothing is shown"
    assert [line["detections"][0]["label"] for line in lines(tmp_path)] == list(range(12))
    assert [number_of(picture) for picture in read_video(tmp_path / "out" / "a.mp4")] == list(range(12))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_frames_are_held_than_are_under_way(
    tmp_path: Path, concurrency: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes its time for the first frame: nobody may read the whole video meanwhile."""
    alive: weakref.WeakSet[Frame] = weakref.WeakSet()
    counts: list[int] = []
    is_filled = threading.Event()

    class Counted(Frame):
        def __init__(self, *values: Any) -> None:
            super().__init__(*values)
            alive.add(self)
            counts.append(len(alive))
            if self.number == 2 * concurrency - 1:
                is_filled.set()

    def before(number: int) -> None:
        if number == 0:
            is_filled.wait(60)
            time.sleep(0.1)  # in which a reader without bounds would go on

    monkeypatch.setattr(video, "Frame", Counted)
    monkeypatch.setattr(video_source, "Frame", Counted)
    write_video(tmp_path / "a.mp4", 60)
    run(tmp_path / "a.mp4", StubClient(before), Pace(1, None, concurrency))
    assert len(lines(tmp_path)) == 60
    # Those waiting, the one being decoded, the one being written, and in the hands of each thread an annotated one.
    assert 2 * concurrency <= max(counts) <= 2 * concurrency + 2 + concurrency


def test_no_more_requests_are_under_way_than_asked_for(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 30)
    lock, under_way, most = threading.Lock(), [0], [0]
    together = threading.Barrier(3)

    class Client(StubClient):
        def detect(self, image: Any, score_threshold: float | None = None) -> Detections:
            with lock:
                under_way[0] += 1
                most[0] = max(most[0], under_way[0])
            together.wait(60)  # they come by three, or this breaks
            with lock:
                under_way[0] -= 1
            return super().detect(image, score_threshold)

    run(tmp_path / "a.mp4", Client(), Pace(1, None, 3))
    assert most[0] == 3


def test_each_nth_frame_up_to_a_number(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 30, rate=30)
    run(tmp_path / "a.mp4", StubClient(), Pace(every=6, max_frames=4, concurrency=2))
    assert [(line["frame"], line["seconds"]) for line in lines(tmp_path)] == [(0, 0), (6, 0.2), (12, 0.4), (18, 0.6)]
    written = cv2.VideoCapture(str(tmp_path / "out" / "a.mp4"), cv2.CAP_FFMPEG)
    assert (written.get(cv2.CAP_PROP_FRAME_COUNT), written.get(cv2.CAP_PROP_FPS)) == (4, 5), "as long as the source"


@pytest.mark.parametrize(
    ("pace", "count", "expected"),
    [
        (Pace(1, None, 1), 30, 30),
        (Pace(7, None, 1), 30, 5),
        (Pace(7, 3, 1), 30, 3),
        (Pace(1, 99, 1), 30, 30),
        (Pace(1, 9, 1), None, 9),
        (Pace(1, None, 1), None, None),
    ],
)
def test_how_many_frames_are_planned(pace: Pace, count: int | None, expected: int | None) -> None:
    assert pace.planned(count) == expected


def test_a_frame_that_fails_is_shown_bare_and_the_rest_goes_on(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 8)

    def before(number: int) -> None:
        if number == 3:
            raise RequestRefusedError("no")

    heard: list[Answer] = []
    run(tmp_path / "a.mp4", StubClient(before), on_answer=heard.append)
    assert lines(tmp_path)[3] == {"frame": 3, "seconds": 0.12, "error": "no"}
    pictures = read_video(tmp_path / "out" / "a.mp4")
    assert [number_of(picture) for picture in pictures] == list(range(8))
    assert [is_annotated(picture) for picture in pictures] == [number != 3 for number in range(8)]
    assert [isinstance(answer.result, CodetrError) for answer in heard] == [number == 3 for number in range(8)]


def test_a_frame_too_large_for_a_jpeg_is_said() -> None:
    answer = video._answer(StubClient(), Frame(0, 0.0, np.zeros((1, 65501, 3), np.uint8)), None)
    assert "65501x1 does not fit into a JPEG" in str(answer.result)


def test_a_server_that_is_gone_ends_the_run_and_what_is_done_is_kept(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 30)

    def before(number: int) -> None:
        if number >= 7:
            raise ServerUnreachableError("gone")

    with pytest.raises(ServerUnreachableError, match="gone"):
        run(tmp_path / "a.mp4", StubClient(before))
    assert [line["frame"] for line in lines(tmp_path)] == list(range(7))
    assert [number_of(picture) for picture in read_video(tmp_path / "out" / "a.mp4")] == list(range(7))


def test_at_ctrl_c_what_is_done_is_kept_and_nothing_more_is_asked(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 100)

    def interrupt(answer: Answer) -> None:
        if answer.frame.number == 9:
            raise KeyboardInterrupt

    client = StubClient()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.mp4", client, on_answer=interrupt)
    assert [line["frame"] for line in lines(tmp_path)] == list(range(10))
    assert [number_of(picture) for picture in read_video(tmp_path / "out" / "a.mp4")] == list(range(10))
    assert len(client.asked) <= 10 + 2 * ALL.concurrency
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jsonl", "a.mp4"]


def test_frames_that_wait_are_not_asked_for_after_an_end() -> None:
    is_filled, is_left = threading.Event(), threading.Event()

    def frames() -> Iterator[Frame]:
        for number in range(8):
            if number == 3:
                is_filled.set()
            yield Frame(number, 0.0, frame_pixels(number))

    def before(number: int) -> None:
        (is_left if number else is_filled).wait(60)

    client = StubClient(before)
    answers = video._answers(client, frames(), None, concurrency=1, alive=4)
    assert next(answers).frame.number == 0
    answers.close()
    is_left.set()
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(60)
    assert {number for number, _ in client.asked} <= {0, 1}


def test_nothing_is_asked_where_something_would_be_lost(tmp_path: Path) -> None:
    client = StubClient()
    (tmp_path / "out").mkdir()
    write_video(tmp_path / "out" / "a.mp4", 3)
    before = (tmp_path / "out" / "a.mp4").read_bytes()
    write_video(tmp_path / "a.mp4", 3)
    with pytest.raises(CodetrError, match="no earlier run wrote it"):
        run(tmp_path / "a.mp4", client)
    with pytest.raises(CodetrError, match="it is read"), VideoSource(str(tmp_path / "out" / "a.mp4")) as source:
        detect_video(client, source, tmp_path / "out", 0.3, ALL)
    assert client.asked == []
    assert (tmp_path / "out" / "a.mp4").read_bytes() == before


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 8)
    run(tmp_path / "a.mp4", StubClient())
    run(tmp_path / "a.mp4", StubClient(), Pace(1, 3, 2))
    assert len(lines(tmp_path)) == len(read_video(tmp_path / "out" / "a.mp4")) == 3


def test_a_live_source_keeps_its_time_where_frames_were_dropped(tmp_path: Path) -> None:
    class Live(VideoSource):
        def __init__(self) -> None:
            self.name, self.stem, self.rate, self.is_live = "camera 0", "a", 10.0, True

        def frames(self, every: int = 1) -> Generator[Frame, None, None]:
            for number, seconds in ((0, 0.0), (1, 0.11), (5, 0.52), (6, 0.6)):
                yield Frame(number, seconds, frame_pixels(number))

    detect_video(StubClient(), Live(), tmp_path / "out", None, ALL)
    assert [line["frame"] for line in lines(tmp_path)] == [0, 1, 5, 6]
    assert [number_of(picture) for picture in read_video(tmp_path / "out" / "a.mp4")] == [0, 1, 1, 1, 1, 5, 6]
