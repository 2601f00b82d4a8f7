from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import perf.access
from codetr import cli, detect
from codetr.labels import read_labels
from codetr_client.detections import Detections
from codetr_client.errors import RequestRefusedError
from codetr_client.options import Tls
from serving.errors import CodetrError
from tests.videos import read_video, write_video

FOUND = Detections(
    np.array([[1, 2, 30, 20], [3, 4, 5, 6]], np.float32),
    np.array([0.25, 0.75], np.float32),
    np.array([0, 1], np.int32),
    ("cat", "dog"),
)


class StubClient:
    """Stands for `CoDetrClient`; remembers how it was built and asked."""

    seen: dict[str, Any]
    checks = 0
    own_names: tuple[str, ...] = ("cat", "dog")  # that the server tells

    def __init__(self, *arguments: Any, **options: Any) -> None:
        StubClient.seen = {"arguments": arguments, "options": options}
        self.retries = options["retries"]

    def __enter__(self) -> StubClient:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def check(self) -> None:
        assert self.retries == 0, "a server that is away is an error at once"
        StubClient.checks += 1

    def class_names(self) -> tuple[str, ...]:
        return StubClient.own_names

    def detect(self, image: bytes, score_threshold: float | None) -> Detections:
        StubClient.seen["score_threshold"] = score_threshold
        if image == b"bad":
            raise RequestRefusedError("no [/image]")
        return FOUND


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(perf.access, "CoDetrClient", StubClient)
    monkeypatch.setattr(StubClient, "checks", 0)
    Image.new("RGB", (64, 48)).save(tmp_path / "good.jpg")
    return tmp_path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["detect", *map(str, arguments)], catch_exceptions=True)


def test_options_reach_the_client(images: Path) -> None:
    (images / "headers").write_text("Authorization: Bearer s3cret\n")
    (images / "names.txt").write_text("Katze\nHund\n")
    result = run(
        images / "good.jpg", "--output", images / "out", "--url", "h:1", "--protocol", "http",
        "--score-threshold", 0.6, "--labels", images / "names.txt", "--timeout", 5, "--model", "m", "--retries", 7,
        "--header-file", images / "headers", "--ca-file", "ca.pem", "--certificate-file", "c.pem",
        "--key-file", "k.pem", "--server-name", "detector.example",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    seen = {"arguments": ("h:1", "http", 5.0, ("Katze", "Hund"), "m"), "score_threshold": 0.6}
    options = {
        "headers": {"Authorization": "Bearer s3cret"},
        "tls": Tls("ca.pem", "c.pem", "k.pem", "detector.example"),
        "retries": 7,
    }
    assert StubClient.seen == {**seen, "options": options}
    assert StubClient.checks == 1


def test_without_options_the_client_is_a_plain_one_that_repeats_a_little(images: Path) -> None:
    assert run(images / "good.jpg", "--output", images / "out").exit_code == 0
    assert StubClient.seen["arguments"] == (None, None, 60.0, None, "codetr")
    assert StubClient.seen["options"] == {"headers": {}, "tls": None, "retries": 8}


def test_the_table_lists_the_best_first(images: Path) -> None:
    output = run(images / "good.jpg", "--output", images / "out").output
    assert output.index("dog") < output.index("cat")
    assert "0.750" in output
    assert (images / "out" / "good.jpg").exists()


def test_many_images_are_summarised(images: Path) -> None:
    for index in range(detect.MAX_IMAGES_IN_FULL):
        Image.new("RGB", (64, 48)).save(images / f"{index}.jpg")
    output = run(images, "--output", images / "out").output
    assert "1 cat, 1 dog" in output
    assert "0.750" not in output


def test_failures_end_in_one_line_and_exit_status_1(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "bad.jpg").write_bytes(b"bad")
    arguments = ["codetr", "detect", str(images / "bad.jpg"), str(images / "good.jpg"), "--output", str(images / "o")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert printed.err == "error: 1 of 2 images failed: bad.jpg: no [/image]\n"
    assert "dog" in printed.out, "the good image is still shown"


def test_labels_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("scratch\ndent\n")
    assert read_labels(str(tmp_path / "names.txt")) == ("scratch", "dent")
    assert read_labels(None) is None
    with pytest.raises(CodetrError, match="one name a line, or 'coco'"):
        read_labels(str(tmp_path / "missing.txt"))


def test_labels_are_as_many_as_the_classes_where_the_server_tells_them(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = images / "out"
    result = run(images / "good.jpg", "--output", output, "--labels", "coco")
    assert str(result.exception) == "--labels coco: 80 names, and the detector has 2 classes"
    assert not output.exists()
    monkeypatch.setattr(StubClient, "own_names", ())
    assert run(images / "good.jpg", "--output", output, "--labels", "coco").exit_code == 0


# What rich would take for markup, a closing tag too many, an emoji's code, a terminal's sequence, and bytes of no text.
ODD = "[red]a[/red] [/] :dog: \x1b[31m \u202eb"
SEEN = r"[red]a[/red] [/] :dog: \x1b[31m \u202eb"


@pytest.mark.parametrize("count", [1, detect.MAX_IMAGES_IN_FULL + 1], ids=["in full", "summarised"])
def test_names_and_messages_are_shown_as_they_are(
    images: Path, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Detections(FOUND.boxes, FOUND.scores, FOUND.labels, (ODD, ODD))

    def answer(self: StubClient, image: bytes, score_threshold: float | None) -> Detections:
        if image == b"bad":
            raise RequestRefusedError(f"server says {ODD}")
        return found

    monkeypatch.setattr(StubClient, "detect", answer)
    monkeypatch.setenv("COLUMNS", "300")
    folder = images / "[i] :cat:"
    folder.mkdir()
    for index in range(count):
        Image.new("RGB", (64, 48)).save(folder / f"{index}.jpg")
        (folder / f"{index}.jpg").rename(folder / f"{ODD.replace('/', '')}{index}.jpg")
    (folder / os.fsdecode(b"bad\xe9.jpg")).write_bytes(b"bad")
    monkeypatch.setattr(sys, "argv", ["codetr", "detect", str(folder), "--output", str(folder / "out")])
    with pytest.raises(SystemExit):
        cli.main()
    output, errors = capsys.readouterr()
    assert output.count(f"{SEEN.replace('/', '')}0.jpg") == (2 if count == 1 else 1)
    assert output.count(f" {SEEN} ") >= 2 if count == 1 else output.count(f"2 {SEEN}") == count
    assert r"bad\udce9.jpg" in output
    assert "[i] :cat:/out" in output
    assert errors == f"error: 1 of {count + 1} images failed: bad\\udce9.jpg: server says {SEEN}\n"


def test_a_video_is_detected_and_its_options_reach_it(images: Path) -> None:
    write_video(images / "a.mp4", 10)
    result = run(images / "a.mp4", "--output", images / "out", "--every", 2, "--max-frames", 3, "--concurrency", 2)
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["frame"] for line in (images / "out" / "a.jsonl").read_text().splitlines()] == [0, 2, 4]
    assert (images / "out" / "a.mp4").is_file()
    assert re.search(r"3 frames, [0-9.]+ frames/s: 3 cat, 3 dog\n", result.output)
    assert "a.mp4 and a.jsonl are in" in result.output


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """Run the command, which ends with status 1; return what it printed."""
    monkeypatch.setattr(sys, "argv", ["codetr", "detect", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    return capsys.readouterr()


def test_frames_that_fail_and_an_early_end_are_said_in_the_end(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = iter(range(100))

    def answer(self: StubClient, image: bytes, score_threshold: float | None) -> Detections:
        if next(count) == 1:
            raise RequestRefusedError(f"says {ODD}")
        return FOUND

    monkeypatch.setattr(StubClient, "detect", answer)
    path = write_video(images / "a.avi", 40, codec="MJPG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    output, errors = fails(monkeypatch, capsys, path, "--output", images / "out", "--concurrency", 1)
    frames = len((images / "out" / "a.jsonl").read_text().splitlines())
    assert 2 < frames < 38
    assert re.search(rf"{frames} frames, [0-9.]+ frames/s, 1 failed: ", output)
    assert errors.startswith(
        f"error: 1 of {frames} frames failed, frame 1: says {SEEN}; {path} ended after {frames} of"
    )


def test_what_is_no_video_leaves_an_earlier_result(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(images / "a.mp4", 3)
    assert run(images / "a.mp4", "--output", images / "out").exit_code == 0
    (images / "a.mp4").write_text("text")
    output, errors = fails(monkeypatch, capsys, images / "a.mp4", "--output", images / "out")
    assert output == ""
    assert "a.mp4 cannot be opened as a video" in errors
    assert len((images / "out" / "a.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["a.mp4", "b.mp4"], "a.mp4, b.mp4 was given; expected pictures, or one video", id="two videos"),
        pytest.param(
            ["good.jpg", "b.mp4"], "good.jpg, b.mp4 was given; expected pictures, or one", id="among pictures"
        ),
        pytest.param(["a.mp4", "--camera", 0], "a.mp4, camera 0 was given", id="a camera too"),
        pytest.param([], "nothing was given; expected pictures, or one video or --camera alone", id="nothing"),
        pytest.param(["good.jpg", "--every", 2], "--every: without effect on pictures", id="every"),
        pytest.param(["good.jpg", "--concurrency", 2], "--concurrency: without effect on pictures", id="concurrency"),
        pytest.param(["--camera", 99], "camera 99 cannot be opened as a video", id="no camera"),
    ],
)
def test_what_cannot_be_together_is_said(
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(images)
    assert message in fails(monkeypatch, capsys, *arguments, "--output", "out")[1]


def test_ctrl_c_ends_a_video_with_what_is_done(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself, since a signal reaches the main thread alone."""
    count = iter(range(1000))

    def answer(self: StubClient, image: bytes, score_threshold: float | None) -> Detections:
        if next(count) == 5:
            signal.raise_signal(signal.SIGINT)
        return FOUND

    monkeypatch.setattr(StubClient, "detect", answer)
    write_video(images / "a.mp4", 200)
    result = run(images / "a.mp4", "--output", images / "out", "--concurrency", 1)
    assert result.exit_code != 0
    assert re.search(r"\d+ frames, [0-9.]+ frames/s: ", result.output)
    frames = len((images / "out" / "a.jsonl").read_text().splitlines())
    assert 0 < frames < 200
    assert frames - len(read_video(images / "out" / "a.mp4")) in (0, 1), "its line comes first"
    assert sorted(path.name for path in (images / "out").iterdir()) == ["a.jsonl", "a.mp4"]
