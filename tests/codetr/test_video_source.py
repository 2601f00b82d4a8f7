from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from codetr import video_source
from codetr.video_source import VideoSource, is_video
from serving.errors import CodetrError
from tests.videos import frame_pixels, number_of, turn, vary_rate, write_video


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("street.mp4", True),
        ("STREET.MOV", True),
        ("a.b/street.webm", True),
        ("rtsp://camera/1", True),
        ("RTSP://camera/1", True),
        ("https://example.org/a", True),
        ("street.jpg", False),
        ("mp4", False),
        ("file://a", False),
        ("rtsp:/a", False),
        (f"{'a' * 300}.mp4", True),
    ],
)
def test_a_video_is_told_by_its_name(name: str, expected: bool) -> None:
    assert is_video(name) is expected


def test_a_folder_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    assert not is_video(str(tmp_path / "a.mp4"))


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mp4v"), ("avi", "MJPG"), ("mkv", "mp4v"), ("webm", "VP80")])
def test_frames_come_in_order_with_their_times(tmp_path: Path, suffix: str, codec: str) -> None:
    path = write_video(tmp_path / f"a.{suffix}", rate=12.5, codec=codec)
    with VideoSource(str(path)) as source:
        frames = list(source.frames())
        assert (source.rate, source.count, source.is_live, source.stem) == (12.5, 12, False, "a")
    assert [frame.number for frame in frames] == list(range(12))
    assert [number_of(frame.pixels) for frame in frames] == list(range(12))
    assert [frame.seconds for frame in frames] == pytest.approx([0.08 * number for number in range(12)], abs=1e-3)
    assert source.fault() is None
    assert source.dropped == 0


def test_each_nth_frame_keeps_its_number_and_time(tmp_path: Path) -> None:
    with VideoSource(str(write_video(tmp_path / "a.mp4"))) as source:
        frames = list(source.frames(5))
    assert [frame.number for frame in frames] == [number_of(frame.pixels) for frame in frames] == [0, 5, 10]
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.2, 0.4])


def test_times_are_those_of_a_rate_that_varies(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    vary_rate(path)
    with VideoSource(str(path)) as source:
        seconds = [frame.seconds for frame in source.frames()]
    assert seconds == pytest.approx([*(0.02 * k for k in range(6)), *(0.12 + 0.06 * k for k in range(6))], abs=1e-3)
    assert source.rate == pytest.approx(25)
    assert source.fault() is None


def test_a_turned_video_comes_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 2)
    turn(path)
    with VideoSource(str(path)) as source:
        pixels = next(source.frames()).pixels
    assert pixels.shape == (64, 48, 3)
    assert np.abs(pixels[3, -3].astype(int) - (0, 0, 255)).max() < 30, "the corner of the top left is at the top right"


def test_a_name_with_a_colon_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4").rename(tmp_path / "12:30 %03d.mp4")
    monkeypatch.chdir(tmp_path)
    with VideoSource("12:30 %03d.mp4") as source:
        assert len(list(source.frames())) == 12


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is empty; expected a whole one", id="empty"),
        pytest.param(b"hello\n" * 99, "cannot be opened as a video; expected a whole video", id="text"),
        pytest.param(None, "No such file or directory", id="missing"),
    ],
)
def test_what_is_no_video_is_said(
    tmp_path: Path,
    content: bytes | None,
    message: str,
) -> None:
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(CodetrError, match=message):
        VideoSource(str(tmp_path / "a.mp4"))


def test_a_name_that_opencv_cannot_take_is_said(tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xe9.mp4")
    write_video(tmp_path / "a.mp4").rename(tmp_path / name)
    with pytest.raises(CodetrError, match="not UTF-8"):
        VideoSource(str(tmp_path / name))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_an_mp4_that_is_cut_short_is_said(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    cut(path)
    with pytest.raises(CodetrError, match="expected a whole video"):
        VideoSource(str(path))


@pytest.mark.parametrize(("suffix", "codec"), [("avi", "MJPG"), ("mkv", "mp4v")])
def test_a_video_that_ends_early_is_said(
    tmp_path: Path,
    suffix: str,
    codec: str,
) -> None:
    path = write_video(tmp_path / f"a.{suffix}", 40, codec=codec)
    cut(path)
    with VideoSource(str(path)) as source:
        assert source.fault() is None, "nobody knows yet"
        frames = list(source.frames())
        assert 0 < len(frames) < 38
        assert str(source.fault()).startswith(f"{path} ended after {len(frames)} of 40 frames: it is cut short")


def test_a_video_without_a_frame_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with VideoSource(str(write_video(tmp_path / "a.mp4"))) as source:
        source._capture.release()
        assert list(source.frames()) == []
        assert "no frame of it can be decoded" in str(source.fault())


@pytest.mark.parametrize(
    ("source", "name", "stem"),
    [
        (3, "camera 3", "camera-3"),
        ("rtsp://h:554/a/1.sdp", "rtsp://h:554/a/1.sdp", "h-554-a-1-sdp"),
        ("rtsp://user:s3cret@h/1", "rtsp://h/1", "h-1"),
        ("rtsp://user:s3@cret@h/1", "rtsp://h/1", "h-1"),
        ("rtsp://user:s3/cret@h/1", "rtsp://h/1", "h-1"),
        ("rtsp://user:s3?cret@h/1", "rtsp://...", "stream"),
        ("http://h/v.mjpg?token=s3cret", "http://h/v.mjpg", "h-v-mjpg"),
        ("http://[::1]:1/../é", "http://[::1]:1/../é", "1-1"),
    ],
)
def test_names_hold_no_secrets(source: str | int, name: str, stem: str) -> None:
    assert video_source._names(source) == (name, stem)


def test_an_address_that_cannot_be_opened_is_said_without_its_password() -> None:
    with pytest.raises(CodetrError, match=r"^rtsp://127.0.0.1:1/a cannot be opened as a video; check the address"):
        VideoSource("rtsp://user:s3cret@127.0.0.1:1/a")


def test_a_camera_that_is_not_there_is_said() -> None:
    with pytest.raises(CodetrError, match=r"^camera 99 cannot be opened as a video; look for its number"):
        VideoSource(99)


def test_opencv_and_ffmpeg_are_silent(tmp_path: Path) -> None:
    """In a process of its own: FFmpeg asks once how much it shall say."""
    path = write_video(tmp_path / "a.mkv", 40)
    cut(path)
    (tmp_path / "b.mp4").write_text("hello\n" * 99)
    code = (
        "import sys\nfrom codetr.video_source import VideoSource\nfrom serving.errors import CodetrError\n"
        "print(len(list(VideoSource(sys.argv[1]).frames())) > 0)\n"
        "for name in sys.argv[2:]:\n    try: VideoSource(name)\n    except CodetrError: print(False)"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "b.mp4"), "rtsp://user:s3cret@127.0.0.1:1/a"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENCV_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert (done.stdout, done.stderr) == ("True\nFalse\nFalse\n", "")


class Capture:
    """Stands for OpenCV's capture of a camera; each frame waits until the test lets it come."""

    def __init__(self, frames: int) -> None:
        self.frames, self.number = frames, -1
        self.come = threading.Semaphore(0)
        self.gone = threading.Event()
        self.asked = threading.Semaphore(0)  # a frame is asked for, so the one before has arrived

    def get(self, key: int) -> float:
        return {cv2.CAP_PROP_FPS: 90000.0, cv2.CAP_PROP_FRAME_COUNT: -1.0}[key]

    def grab(self) -> bool:
        self.asked.release()
        self.come.acquire()
        self.number += 1
        return self.number < self.frames

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, frame_pixels(self.number)

    def release(self) -> None:
        self.gone.set()


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], tuple[VideoSource, Capture]]:
    def make(frames: int) -> tuple[VideoSource, Capture]:
        capture = Capture(frames)
        monkeypatch.setattr(video_source, "_opened", lambda source, name: capture)
        return VideoSource(0), capture

    return make


def arrive(capture: Capture, frames: int) -> None:
    """Let frames come, and wait until they have."""
    for _ in range(frames):
        capture.come.release()
        capture.asked.acquire()


def test_a_live_source_gives_the_newest_frame_and_drops_the_others(
    camera: Callable[[int], tuple[VideoSource, Capture]],
) -> None:
    source, capture = camera(20)
    assert source.is_live
    assert source.rate == video_source.USUAL_RATE, "a clock is no frame rate"
    with source, closing(source.frames()) as frames:
        capture.come.release()
        assert next(frames).number == 0
        capture.asked.acquire()  # of the first
        capture.asked.acquire()  # of the second: the first has arrived
        arrive(capture, 6)
        assert number_of((newest := next(frames)).pixels) == newest.number == 6
        assert source.dropped == 5
        for _ in range(14):
            capture.come.release()
        last = list(frames)
        assert last[-1].number == 19
    assert source.dropped == 20 - 2 - len(last)
    assert "ended or broke off after 20 frames" in str(source.fault())
    assert capture.gone.wait(60)


def test_a_live_source_is_left_before_its_end(camera: Callable[[int], tuple[VideoSource, Capture]]) -> None:
    source, capture = camera(10**9)
    before = set(threading.enumerate())
    frames = source.frames()
    capture.come.release()
    assert next(frames).number == 0
    closer = threading.Thread(target=frames.close)
    closer.start()
    while not capture.gone.wait(0.01):  # frames come all the time
        capture.come.release()
    closer.join()
    assert set(threading.enumerate()) <= before, "a thread within OpenCV would abort the program at its end"
    assert source.fault() is None


class Stream(BaseHTTPRequestHandler):
    """A camera's stream over HTTP: JPEGs one after the other."""

    frames = 30

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for number in range(self.frames):
            jpeg = cv2.imencode(".jpg", frame_pixels(number))[1].tobytes()
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
            self.wfile.write(jpeg + b"\r\n")

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def stream() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stream) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://user:s3cret@127.0.0.1:{server.server_port}/live"
        server.shutdown()
        thread.join()


def test_a_stream_over_http_is_live_and_its_end_is_said(stream: str) -> None:
    with VideoSource(stream) as source:
        assert source.is_live
        with closing(source.frames()) as frames:
            numbers = [number_of(frame.pixels) for frame in frames]
    assert numbers == sorted(numbers)
    assert len(numbers) + source.dropped == source.read
    assert Stream.frames - 2 <= source.read <= Stream.frames
    assert "s3cret" not in str(source.fault())
