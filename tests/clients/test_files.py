from __future__ import annotations

import json
import os
import sys
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


def copies(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_photographs_in_the_output_folder_survive_and_are_not_joined_by_their_pictures(folder: Path) -> None:
    before = copies(folder)
    for _ in range(3):
        results = detect_files(StubDetector(), find_images([str(folder)]), folder)
        assert [result.picture.name for result in results if isinstance(result, Detected)] == [
            "a.jpg",
            "b-2.jpg",
            "b-3.jpg",
        ]
    assert {name: content for name, content in copies(folder).items() if name in before} == before


@pytest.mark.parametrize("pattern", ["", "/**/*.jp*"], ids=["folder", "glob"])
def test_a_second_search_leaves_out_pictures_of_the_first_run_but_no_photograph(folder: Path, pattern: str) -> None:
    first = find_images([f"{folder}{pattern}"])
    detect_files(StubDetector(), first, folder / "out")
    Image.new("RGB", (64, 48)).save(folder / "out" / "photograph.jpg")
    assert find_images([f"{folder}{pattern}"]) == sorted([*first, folder / "out" / "photograph.jpg"])
    (folder / "out" / "photograph.jpg").unlink()
    with pytest.raises(CodetrError, match=r"no images in .*other than annotated pictures"):
        find_images([str(folder / "out")])


def test_a_photograph_put_in_place_of_a_picture_is_a_photograph(folder: Path) -> None:
    detect_files(StubDetector(), [folder / "b.jpg"], folder / "out")
    Image.new("RGB", (8, 8), "red").save(folder / "out" / "b.jpg")
    before = copies(folder / "out")
    assert folder / "out" / "b.jpg" in find_images([str(folder)])
    (result,) = detect_files(StubDetector(), [folder / "b.jpg"], folder / "out")
    assert isinstance(result, Detected)
    assert result.picture.name == "b-2.jpg"
    assert (folder / "out" / "b.jpg").read_bytes() == before[str(folder / "out" / "b.jpg")]


@pytest.mark.parametrize("change", ["of its pixels", "of a byte behind its end"])
def test_a_picture_that_was_changed_is_kept(folder: Path, change: str) -> None:
    detect_files(StubDetector(), [folder / "b.jpg"], folder / "out")
    picture = folder / "out" / "b.jpg"
    if change == "of its pixels":  # programs that edit pictures keep their comments
        with Image.open(picture) as opened:
            opened.convert("L").save(picture, comment=opened.info["comment"])
    else:
        picture.write_bytes(picture.read_bytes() + b"x")
    before = picture.read_bytes()
    (result,) = detect_files(StubDetector(), [folder / "b.jpg"], folder / "out")
    assert isinstance(result, Detected)
    assert result.picture.name == "b-2.jpg"
    assert picture.read_bytes() == before


def link(kind: str, source: Path, name: Path) -> None:
    (name.symlink_to if kind == "symlink" else name.hardlink_to)(source)


@pytest.mark.parametrize("kind", ["symlink", "hard link"])
def test_a_link_to_a_source_is_not_written_through(folder: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "out").mkdir()
    link(kind, folder / "b.jpg", tmp_path / "out" / "b.jpg")
    before = copies(folder)
    (result,) = detect_files(StubDetector(), [folder / "b.jpg"], tmp_path / "out")
    assert isinstance(result, Detected)
    assert result.picture.name == "b-2.jpg"
    assert copies(folder) == before


def test_an_own_picture_given_as_a_source_is_not_overwritten(folder: Path) -> None:
    detect_files(StubDetector(), [folder / "b.jpg"], folder / "out")
    before = (folder / "out" / "b.jpg").read_bytes()
    (result,) = detect_files(StubDetector(), [folder / "inner" / ".." / "out" / "b.jpg"], folder / "out")
    assert isinstance(result, Detected)
    assert result.picture.name == "b-2.jpg"
    assert (folder / "out" / "b.jpg").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    ['{"images": [], "annotations": [], "categories": []}', "[]", "not JSON"],
    ids=["COCO data set", "COCO results", "text"],
)
def test_a_foreign_results_file_is_refused_before_anything_is_detected(
    folder: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / RESULTS_NAME).write_text(content)
    with pytest.raises(CodetrError, match=r"detections\.json would be overwritten, but no earlier run wrote it"):
        detect_files(StubDetector(lives=0), [folder / "b.jpg"], tmp_path)
    assert (tmp_path / RESULTS_NAME).read_text() == content


@pytest.mark.parametrize("name", ["notes.txt", "notes.txt/inner"])
def test_an_output_that_is_a_file_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(CodetrError, match=r"notes.*: it is a file or lies in one; expected a folder"):
        detect_files(StubDetector(lives=0), [folder / "b.jpg"], folder / name)
    assert (folder / "notes.txt").read_text() == "not an image"


def test_one_stem_with_two_suffixes_gets_two_pictures(folder: Path, tmp_path: Path) -> None:
    for name in ("c.PNG", "c.JFIF", "C.jpg"):
        Image.new("RGB", (8, 8)).save(folder / name, "JPEG")
    found = [path for path in find_images([str(folder)]) if path.stem in "Cc"]
    results = detect_files(StubDetector(), found, tmp_path / "out")
    pictures = [result.picture.name for result in results if isinstance(result, Detected)]
    assert pictures == ["C.jpg", "c-2.jpg", "c-3.jpg"], "also where a disk knows no case"


def test_hidden_files_and_folders_of_a_folder_are_left_out(folder: Path) -> None:
    before = find_images([str(folder)])
    (folder / ".thumbnails").mkdir()
    (folder / "folder.jpg").mkdir()
    for name in ("._b.jpg", ".DS_Store", ".thumbnails/b.jpg"):
        (folder / name).write_bytes(b"\xff\xd8")
    assert find_images([str(folder)]) == before


@pytest.mark.parametrize("name", ["a.jfif", "a.JPE", "a.JPG", "a.Webp", "a.BMP", "a.jif", "a.jfi", "a.PNG"])
def test_every_suffix_of_a_picture_is_found_in_any_case(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    for other in ("a.txt", "Thumbs.db", "a.jpg.bak", "a.json"):
        (tmp_path / other).touch()
    assert find_images([str(tmp_path)]) == [tmp_path / name]
    assert find_images([f"{tmp_path}/*"]) == [tmp_path / name]


def test_copies_that_systems_keep_are_left_out_of_folders_and_globs(folder: Path) -> None:
    before = find_images([str(folder)])
    for name in ("__MACOSX/._b.jpg", "__MACOSX/b.jpg", "@eaDir/b.jpg/THUMB_M.jpg", "$RECYCLE.BIN/b.jpg", ".x/b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\xff\xd8")
    assert find_images([str(folder)]) == before
    assert find_images([f"{folder}/**/*.[jJ]*"]) == before
    assert find_images([f"{folder}/.x/*.jpg"]) == [folder / ".x" / "b.jpg"], "what a glob names is not hidden"
    assert find_images([str(folder / "__MACOSX")]) == [folder / "__MACOSX" / "b.jpg"]


def test_a_folder_that_is_called_like_a_picture_is_a_folder(folder: Path) -> None:
    (folder / "c.jpg").mkdir()
    (folder / "inner" / "b.jpg").rename(folder / "c.jpg" / "d.jpg")
    found = [folder / "a.JPEG", folder / "b.jpg", folder / "c.jpg" / "d.jpg"]
    assert find_images([str(folder)]) == found
    assert find_images([f"{folder}/*.jpg"]) == [folder / "b.jpg"]
    assert find_images([str(folder / "c.jpg")]) == [folder / "c.jpg" / "d.jpg"]


def test_links_in_circles_end_and_give_each_file_once(folder: Path) -> None:
    before = find_images([str(folder)])
    for name in ("circle", "inner/up", "inner/again"):
        (folder / name).symlink_to(folder, target_is_directory=True)
    (folder / "z.jpg").symlink_to(folder / "b.jpg")
    (folder / "itself.jpg").symlink_to(folder / "itself.jpg")
    assert find_images([str(folder)]) == sorted([*before, folder / "itself.jpg"])
    globbed = find_images([f"{folder}/**/*.jp*", f"{folder}/**/*.JP*"])
    assert sorted(globbed) == sorted([*before, folder / "itself.jpg"])


def test_a_pipe_in_a_folder_is_not_waited_for(folder: Path) -> None:
    before = find_images([str(folder)])
    os.mkfifo(folder / "pipe.jpg")
    assert find_images([str(folder)]) == before


def test_a_name_that_matches_nothing_is_told_by_reading_it(folder: Path) -> None:
    for name in ("none.jpg", "none/*.jpg"):
        assert find_images([str(folder / name)]) == [folder / name]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        pytest.param("*.gif", "no images in .*gif: expected files ending in", id="no picture matches"),
        pytest.param("**x/*.jpg", "cannot look for .*; name a file, a folder or a glob", id="no glob"),
        pytest.param("a" * 5000, "cannot look for .*File name too long", id="too long"),
    ],
)
def test_a_pattern_that_cannot_be_is_named_in_one_line(folder: Path, pattern: str, message: str) -> None:
    if pattern == "**x/*.jpg" and sys.version_info >= (3, 13):
        pytest.skip("this Python takes it for `*x`")
    (folder / "a.gif").touch()
    with pytest.raises(CodetrError, match=message):
        find_images([f"{folder}/{pattern}"])


def test_the_longest_names_get_pictures(folder: Path) -> None:
    for name in ("l" * 251 + ".jpg", "l" * 251 + ".png", "ü" * 125 + ".jpg"):
        Image.new("RGB", (8, 8)).save(folder / name, "JPEG")
    results = detect_files(StubDetector(), find_images([str(folder)]), folder)
    assert all(isinstance(result, Detected) for result in results)
    assert len({result.picture for result in results}) == len(results) == 6


def test_a_name_of_bytes_that_are_no_text_gets_a_picture_and_an_entry(folder: Path) -> None:
    path = folder / os.fsdecode(b"caf\xe9.jpg")
    Image.new("RGB", (8, 8)).save(folder / "cafe.jpg")
    (folder / "cafe.jpg").rename(path)
    assert path in find_images([str(folder)])
    (result,) = detect_files(StubDetector(), [path], folder / "out")
    assert isinstance(result, Detected)
    assert os.fsencode(results_in(folder / "out")[0]["file"]) == os.fsencode(path)


def test_a_picture_that_cannot_be_written_leaves_the_former_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detect_files(StubDetector(), [folder / "b.jpg"], folder / "out")
    before = (folder / "out" / "b.jpg").read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(CodetrError, match=r"cannot write .*: No space left on device"):
        detect_files(StubDetector(), [folder / "b.jpg"], folder / "out")
    assert (folder / "out" / "b.jpg").read_bytes() == before
    assert not list((folder / "out").glob(".*")), "no partial file"


class JpegOrPng(StubDetector):
    """Takes every image."""

    def detect(self, image: bytes, score_threshold: float | None = None) -> Detections:
        return ONE


def test_a_picture_that_is_too_wide_for_a_jpeg_is_made_smaller(tmp_path: Path) -> None:
    """The largest that the service decodes have sides of 65,535 pixels."""
    for name, size in (("wide.png", (65535, 2)), ("high.png", (2, 65535))):
        Image.new("RGB", size).save(tmp_path / name)
    Image.new("RGB", (65500, 1)).save(tmp_path / "fits.jpg")
    results = detect_files(JpegOrPng(), [tmp_path / name for name in ("wide.png", "high.png", "fits.jpg")], tmp_path)
    sizes = []
    for result in results:
        assert isinstance(result, Detected)
        with Image.open(result.picture) as picture:
            sizes.append(picture.size)
    assert sizes == [(65500, 2), (2, 65500), (65500, 1)]
