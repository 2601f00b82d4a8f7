from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codetr_client.detections import Detections
from codetr_client.errors import CodetrError, RequestRefusedError, ServerUnreachableError
from codetr_client.files import RESULTS_NAME, Detected, Failed, detect_files, find_images

ONE = Detections(np.array([[1, 2, 30, 20]], np.float32), np.array([0.5], np.float32), np.array([1], np.int32), ("dog",))


class StubDetector:
    """Finds one dog in every picture; refuses bytes that are no JPEG; stops after `lives` answers."""

    def __init__(self, lives: int = 100) -> None:
        self.lives = lives

    def detect(self, image: bytes, score_threshold: float | None = None) -> Detections:
        self.lives -= 1
        if self.lives < 0:
            raise ServerUnreachableError("gone")
        if not image.startswith(b"\xff\xd8"):
            raise RequestRefusedError("not an image")
        return ONE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "inner").mkdir(parents=True)
    for name in ("b.jpg", "a.JPEG", "inner/b.jpg"):
        Image.new("RGB", (64, 48)).save(tmp_path / "images" / name)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def results_in(output: Path) -> list[dict]:
    return json.loads((output / RESULTS_NAME).read_text())["images"]


def test_find_images_takes_files_folders_and_globs_each_file_once(folder: Path) -> None:
    inside = [folder / "a.JPEG", folder / "b.jpg", folder / "inner" / "b.jpg"]
    assert find_images([str(folder)]) == inside
    assert find_images([f"{folder}/*.jpg"]) == [folder / "b.jpg"]
    assert find_images([f"{folder}/**/*.jpg", str(folder / "b.jpg")]) == inside[1:]
    assert find_images([str(folder / "notes.txt")]) == [folder / "notes.txt"], "named outright"


def test_a_file_whose_name_looks_like_a_glob_is_that_file(folder: Path) -> None:
    strange = folder / "x[1].jpg"
    strange.touch()
    assert find_images([str(strange)]) == [strange]


def test_find_images_names_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match=r"no images in .*: expected files ending in \.bmp"):
        find_images([str(tmp_path)])


def test_every_image_gets_a_picture_and_an_entry_even_with_equal_names(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "deep" / "out"
    results = detect_files(StubDetector(), find_images([str(folder)]), output)
    assert [result.picture.name for result in results if isinstance(result, Detected)] == ["a.jpg", "b.jpg", "b-2.jpg"]
    entry = results_in(output)[2]
    assert entry["picture"] == "b-2.jpg"
    assert (entry["width"], entry["height"]) == (64, 48)
    assert entry["detections"] == [{"box": [1, 2, 30, 20], "score": 0.5, "label": 1, "name": "dog"}]
    with Image.open(output / "b-2.jpg") as picture:
        assert picture.size == (64, 48)


def test_a_bad_image_is_reported_and_the_rest_goes_on(folder: Path, tmp_path: Path) -> None:
    heard: list[Detected | Failed] = []
    paths = [folder / "notes.txt", folder / "missing.jpg", folder / "b.jpg"]
    results = detect_files(StubDetector(), paths, tmp_path / "out", on_result=heard.append)
    assert [type(result) for result in results] == [Failed, Failed, Detected]
    assert heard == results
    first, second, _ = results_in(tmp_path / "out")
    assert first == {"file": str(folder / "notes.txt"), "error": "not an image"}
    assert second["error"].startswith("cannot read")


def test_a_dead_server_ends_the_run_and_keeps_what_was_found(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachableError):
        detect_files(StubDetector(lives=2), find_images([str(folder)]), tmp_path / "out")
    assert len(results_in(tmp_path / "out")) == 2


def test_ctrl_c_keeps_what_was_found(folder: Path, tmp_path: Path) -> None:
    def interrupt(result: Detected | Failed) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detect_files(StubDetector(), find_images([str(folder)]), tmp_path / "out", on_result=interrupt)
    assert len(results_in(tmp_path / "out")) == 1


def test_a_second_run_overwrites_the_first(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        detect_files(StubDetector(), [folder / "b.jpg"], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.jpg", RESULTS_NAME]
