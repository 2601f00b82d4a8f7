import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builder.engines import EngineOutput
from builder.pipeline.export import InputSpec
from builder.pipeline.manifest import describe
from builder.pipeline.report import WORST, is_free, place_report, write_report
from builder.pipeline.samples import Samples
from builder.pipeline.verify import LIMITS, Comparison, Verification, VerificationError, compare, overall
from builder.variants import get_variant
from tests.smallest import built

NAMES = [f"image-{index}.png" for index in range(6)]
SAMPLES = Samples([np.full((30, 40, 3), 90, np.uint8)] * len(NAMES), NAMES)


def candidates(moved=()):
    """Two candidates an image, those of the images `moved` elsewhere."""
    boxes = np.tile(np.array([[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]], np.float32), (len(NAMES), 1, 1))
    for index in moved:
        boxes[index, 0] += 0.3
    scores = np.tile(np.array([0.9, 0.8], np.float32), (len(NAMES), 1))
    return EngineOutput(boxes, scores, np.tile(np.array([0, 3], np.int32), (len(NAMES), 1)))


def comparison(moved=(), ap=None):
    expected, actual = candidates(), candidates(moved)
    per_image = compare(expected, actual)
    result = Verification(len(NAMES), 12, *overall(expected, actual), 1.0, ap, ap)
    return Comparison(result, LIMITS["float32"], per_image, expected, actual)


def written(folder, compared, samples=SAMPLES):
    about = describe(get_variant("co_dino_demo"), None, 0, built(), "float32", InputSpec(64, 96, 2), compared.result)
    path = write_report(folder, compared, samples, about)
    return path.read_text(), json.loads((folder / "verification.json").read_text())


def test_an_agreeing_engine_is_reported_with_its_limits(tmp_path):
    text, figures = written(tmp_path / "report", comparison(ap=0.75))
    assert text.startswith(
        "# Verification of co_dino_demo, onnx engine in float32, 64x96 pixels (h x w), batch 1 to 2\n"
    )
    assert "The engine agrees." in text
    assert "| best 12 candidates found again | 100.00% | at least 98% |" in text
    assert "| best 12 of the engine that are the detector's | 100.00% | at least 98% |" in text
    assert "| of the engine NaN or infinite | 0 | none |" in text
    assert "| AP 50:95 of the engine | 0.7500 |" in text
    assert "| AP difference | +0.0000 | loss of at most 0.005 |" in text
    assert figures["agrees"] is True
    assert (figures["ap"], figures["ap_engine"], figures["ap_difference"]) == (0.75, 0.75, 0.0)
    assert figures["limits"]["max_ap_loss"] == 0.005
    assert [each["image"] for each in figures["per_image"]] == NAMES


def test_the_worst_images_are_drawn_worst_first_side_by_side(tmp_path):
    compared = comparison(moved=[4])
    text, _ = written(tmp_path, compared)
    pictures = sorted(path.name for path in tmp_path.glob("*.jpg"))
    assert len(pictures) == WORST
    assert pictures[0] == "1-image-4.jpg"
    assert all(f"]({name})" in text for name in pictures)
    with Image.open(tmp_path / pictures[0]) as picture:
        pixels = np.asarray(picture).astype(int)
    half = (pixels.shape[1] - 4) // 2
    assert half * 30 == pixels.shape[0] * 40
    left, right = pixels[:, :half], pixels[:, -half:]
    assert (np.abs(left - right).max(-1) > 60).any(), "the moved box is seen"
    with Image.open(tmp_path / pictures[1]) as picture:
        pixels = np.asarray(picture).astype(int)
    assert not (np.abs(pixels[:, :half] - pixels[:, -half:]).max(-1) > 60).any()


def test_names_of_images_are_shown_as_they_are(tmp_path):
    names = ["a|b.png", "[c](d) <e>.png", "`f`.png", "*g*.png", "h i.png", "j\\k.png"]
    text, _ = written(tmp_path / "report", comparison(), Samples(SAMPLES.images, names))
    rows = (r"a\|b.png", r"\[c\](d) \<e\>.png", r"\`f\`.png", r"\*g\*.png", "h i.png", r"j\\k.png")
    assert all(f"| {name} | 100.0% |" in text for name in rows)
    assert r"![1-a\|b](1-a%7Cb.jpg)" in text


def test_a_disagreeing_engine_is_reported_with_its_faults(tmp_path):
    compared = comparison(moved=[1, 4])
    text, figures = written(tmp_path, compared)
    assert "does not reproduce the detector: found 83.3% of the detector's candidates, expected 98%" in text
    assert figures["agrees"] is False
    assert len(figures["faults"]) == 2, "one for each direction"
    with pytest.raises(VerificationError, match=r"found 83\.3% .*; look there$"):
        compared.check("; look there")


def test_an_engine_of_nan_is_reported(tmp_path):
    expected, actual = candidates(), candidates()
    actual.scores[2] = np.nan
    result = Verification(len(NAMES), 12, *overall(expected, actual), None, not_finite=2)
    compared = Comparison(result, LIMITS["float32"], compare(expected, actual), expected, actual)
    text, figures = written(tmp_path, compared)
    assert "does not reproduce the detector: 2 of the engine's candidates are NaN or infinite, expected none" in text
    assert figures["not_finite"] == 2
    assert (tmp_path / "1-image-2.jpg").is_file()


def test_random_detectors_have_their_best_candidates_drawn(tmp_path):
    low = EngineOutput(candidates().boxes, candidates().scores * 0.01, candidates().labels)
    compared = Comparison(comparison().result, LIMITS["float32"], compare(low, low), low, low)
    written(tmp_path, compared)
    with Image.open(next(tmp_path.glob("1-*.jpg"))) as picture:
        assert np.asarray(picture).std() > 5, "boxes on a plain image"


def tree(folder):
    """Every file below a folder and what is in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_report_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path):
    written(tmp_path / "first", comparison(moved=[4]))
    written(tmp_path / "second", comparison())
    place = tmp_path / "kept" / "place"
    assert place_report(tmp_path / "first", place) == place
    assert place_report(tmp_path / "second", place) == place
    assert tree(place) == tree(tmp_path / "second")  # no picture of the first is left
    (place / "notes.txt").write_text("precious")
    assert not is_free(place)
    before = tree(place)
    for _ in range(2):
        assert place_report(tmp_path / "first", place) == tmp_path / "kept" / "place-2"
    assert tree(place) == before
    assert sorted(path.name for path in place.parent.iterdir()) == ["place", "place-2"]


@pytest.mark.parametrize("name", ["report.md", "verification.json", "1-image.jpg", "notes.txt"])
@pytest.mark.parametrize("content", ["precious", '["precious"]', '{"precious": 1}'])
def test_what_is_no_report_is_not_replaced(tmp_path, name, content):
    (tmp_path / "place").mkdir()
    assert is_free(tmp_path / "place")
    (tmp_path / "place" / name).write_text(content)
    assert not is_free(tmp_path / "place")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").touch()
    assert not is_free(tmp_path / "link")
    assert not is_free(tmp_path / "file")


@pytest.mark.parametrize(("owner", "name", "failing"), [(shutil, "copytree", 1), (Path, "rename", 2)])
def test_an_earlier_report_is_kept_until_the_next_is_whole(tmp_path, monkeypatch, owner, name, failing):
    """The copy finds no room, or cannot be renamed when the earlier report is aside already."""
    written(tmp_path / "first", comparison(moved=[4]))
    place = place_report(tmp_path / "first", tmp_path / "kept" / "place")
    before, real, calls = tree(place), getattr(owner, name), []

    def failing_once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == failing:
            raise OSError("no room")
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing_once)
        elsewhere = place_report(tmp_path / "first", place)
    assert len(calls) > failing
    assert tree(place) == before == tree(elsewhere)
    assert place.parent not in elsewhere.parents
    assert os.listdir(place.parent) == ["place"]
    shutil.rmtree(elsewhere.parent)
