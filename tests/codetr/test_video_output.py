from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from codetr import video_output
from codetr.video_output import LineFile, VideoFile, check_outputs
from serving.errors import CodetrError
from tests.videos import frame_pixels, number_of, read_video, write_video

LINE = {"frame": 0, "seconds": 0.0, "detections": []}


def write(path: Path, frames: int = 5, rate: float = 25.0, size: tuple[int, int] = (64, 48)) -> None:
    video = VideoFile(path, rate, frame_pixels(0, *size))
    for number in range(frames):
        video.write(frame_pixels(number, *size))
    video.close()


@pytest.mark.parametrize("rate", [0.1, 1.0, 24000 / 1001, 30000 / 1001, 25 / 3, 240.0])
def test_a_video_has_its_frames_and_rate_and_nothing_else_is_left(tmp_path: Path, rate: float) -> None:
    write(tmp_path / "a.mp4", rate=rate)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert [number_of(frame) for frame in read_video(tmp_path / "a.mp4")] == list(range(5))
    found = cv2.VideoCapture(str(tmp_path / "a.mp4"), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FPS)
    assert found == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(("size", "expected"), [((64, 48), (48, 64)), ((65, 49), (48, 64)), ((67, 48), (48, 66))])
def test_an_odd_side_loses_a_pixel(tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]) -> None:
    write(tmp_path / "a.mp4", size=size)
    assert {frame.shape[:2] for frame in read_video(tmp_path / "a.mp4")} == {expected}


def test_a_frame_of_another_size_is_resized(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "a.mp4", 25, frame_pixels(0))
    for number, size in enumerate([(64, 48), (128, 96), (30, 20)]):
        video.write(frame_pixels(number, *size))
    video.close()
    assert [number_of(frame) for frame in read_video(tmp_path / "a.mp4")] == [0, 1, 2]


def test_the_last_frame_fills_what_is_missing(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "a.mp4", 25, frame_pixels(0))
    for number in (0, 3, 3, 6):
        video.write(frame_pixels(number), number)
    video.close()
    assert [number_of(frame) for frame in read_video(tmp_path / "a.mp4")] == [0, 0, 0, 3, 3, 3, 6]


def test_a_video_that_is_not_whole_is_said_and_the_one_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.mp4", 3)
    video = VideoFile(tmp_path / "a.mp4", 25, frame_pixels(0))
    for number in range(5):
        video.write(frame_pixels(number))
    monkeypatch.setattr(video, "_frames", 6)  # as if the disk had swallowed one
    with pytest.raises(CodetrError, match=r"5 of 6 frames arrived; free its disk"):
        video.close()
    assert len(read_video(tmp_path / "a.mp4")) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_frame_more_than_was_counted_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C came before it was counted."""
    video = VideoFile(tmp_path / "a.mp4", 25, frame_pixels(0))
    for number in range(5):
        video.write(frame_pixels(number))
    monkeypatch.setattr(video, "_frames", 4)
    video.close()
    assert len(read_video(tmp_path / "a.mp4")) == 5


def test_without_an_encoder_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_output, "CODECS", ("abcd",))
    with pytest.raises(CodetrError, match="OpenCV opens no MP4 of 64x48 with abcd"):
        write(tmp_path / "a.mp4")


def test_lines_can_be_read_while_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "else.txt").write_text("kept")
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "else.txt")
    lines = LineFile(tmp_path / "a.jsonl")
    lines.write(LINE)
    lines.write({**LINE, "frame": 1})
    assert [json.loads(line)["frame"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [0, 1]
    lines.close()
    assert (tmp_path / "else.txt").read_text() == "kept"


def test_lines_that_cannot_be_written_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CodetrError, match=r"cannot write .*a.jsonl: No such file or directory"):
        LineFile(tmp_path / "gone" / "a.jsonl")
    lines = LineFile(tmp_path / "a.jsonl")
    lines.close()

    def full(text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lines, "_file", SimpleNamespace(write=full))
    with pytest.raises(CodetrError, match=r"cannot write .*a.jsonl: No space left on device"):
        lines.write(LINE)


@pytest.mark.parametrize(
    ("line", "is_own"),
    [
        (json.dumps(LINE), True),
        (json.dumps({"frame": 0, "seconds": 0.0, "error": "e"}), True),
        (json.dumps({**LINE, "more": 1}), False),
        ("[]", False),
        ("", False),
        ("\udcff", False),
    ],
)
def test_lines_of_somebody_else_are_kept(tmp_path: Path, line: str, is_own: bool) -> None:
    (tmp_path / "a.jsonl").write_bytes(line.encode(errors="surrogateescape"))
    if is_own:
        check_outputs(tmp_path / "a.mp4", tmp_path / "a.jsonl", Path("a.mp4"))
    else:
        with pytest.raises(CodetrError, match=r"a.jsonl would be overwritten, but no earlier run wrote it"):
            check_outputs(tmp_path / "a.mp4", tmp_path / "a.jsonl", Path("a.mp4"))


def test_only_a_video_of_an_earlier_run_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "own.mp4")
    check_outputs(tmp_path / "own.mp4", tmp_path / "a.jsonl", tmp_path / "source.mp4")
    write_video(tmp_path / "other.mp4")
    (tmp_path / "short.mp4").write_bytes(b"a")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "nothing")
    for name in ("other", "short", "folder", "broken"):
        with pytest.raises(CodetrError, match=rf"{name}.mp4 would be overwritten, but no earlier run wrote it"):
            check_outputs(tmp_path / f"{name}.mp4", tmp_path / "a.jsonl", tmp_path / "source.mp4")


def test_what_cannot_be_read_is_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "own.mp4")
    monkeypatch.setattr(Path, "open", lambda *arguments: (_ for _ in ()).throw(PermissionError("no")))
    with pytest.raises(CodetrError, match=r"own.mp4 would be overwritten"):
        check_outputs(tmp_path / "own.mp4", tmp_path / "a.jsonl", Path("source.mp4"))
    with pytest.raises(CodetrError, match=r"own.mp4 would be overwritten"):
        check_outputs(tmp_path / "a.mp4", tmp_path / "own.mp4", Path("source.mp4"))


def test_the_source_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path / "own.mp4")
    (tmp_path / "link.mp4").hardlink_to(tmp_path / "own.mp4")
    with pytest.raises(CodetrError, match=r"link.mp4 would be overwritten, but it is read"):
        check_outputs(tmp_path / "link.mp4", tmp_path / "a.jsonl", tmp_path / "own.mp4")


def test_pixels_that_are_not_contiguous_are_written(tmp_path: Path) -> None:
    video = VideoFile(tmp_path / "a.mp4", 25, frame_pixels(0))
    video.write(np.asarray(frame_pixels(7)[:, :, ::-1]))
    video.close()
    assert number_of(read_video(tmp_path / "a.mp4")[0]) == 7
