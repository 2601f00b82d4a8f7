"""A video through `codetr detect` and a real server: each frame has its own answer; Ctrl-C leaves a file that plays."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from codetr_client import CoDetrClient
from serving.launch import TritonServer
from tests.videos import read_video, write_video

pytestmark = pytest.mark.server


def command(server: TritonServer, video: Path, *options: str) -> list[str]:
    output = str(video.parent / "out")
    words = ["detect", str(video), "--output", output, "--url", server.grpc_url, "--score-threshold", "0.01", *options]
    return [sys.executable, "-c", "from codetr.cli import main; main()", *words]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "a.jsonl").read_text().splitlines()]


def test_each_frame_gets_its_own_answer(both: TritonServer, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 16, size=(128, 96))
    done = subprocess.run(command(both, path), capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "16 frames, " in done.stdout
    found = lines(tmp_path)
    assert [line["frame"] for line in found] == list(range(16))
    # What the server finds is scored by the frame's brightness, so that no answer can be that of another frame.
    with CoDetrClient(both.grpc_url) as client:
        for line, pixels in zip(found, read_video(path), strict=True):
            expected = client.detect(np.ascontiguousarray(pixels[:, :, ::-1]), 0.01)
            assert [each["label"] for each in line["detections"]] == expected.labels.tolist()
            scores = [each["score"] for each in line["detections"]]
            assert scores == pytest.approx(expected.scores.tolist(), abs=0.004), "JPEG moves it by less than a level"
    written = cv2.VideoCapture(str(tmp_path / "out" / "a.mp4"), cv2.CAP_FFMPEG)
    assert [written.get(key) for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS)] == [16, 25]
    assert len(read_video(tmp_path / "out" / "a.mp4")) == 16


def test_ctrl_c_leaves_a_video_that_plays(both: TritonServer, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 5000)
    running = subprocess.Popen(command(both, path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        written = tmp_path / "out" / "a.jsonl"
        while running.poll() is None and not (written.exists() and written.read_bytes().count(b"\n") > 2):
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        output, errors = running.communicate(timeout=300)
    finally:
        running.kill()
        running.wait()
    assert running.returncode not in (0, -signal.SIGINT), errors
    assert "Traceback" not in errors
    assert "a.mp4 and a.jsonl are in" in output
    found = lines(tmp_path)
    assert [line["frame"] for line in found] == list(range(len(found)))
    pictures = read_video(tmp_path / "out" / "a.mp4")
    assert 0 < len(pictures) <= len(found) < 5000
    assert len(found) - len(pictures) <= 1, "the line of a frame comes before its picture"
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["a.jsonl", "a.mp4"]
