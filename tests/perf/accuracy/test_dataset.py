"""Data sets as people have them: the same objects give the same AP, whatever their file looks like."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from builder.pipeline.coco_pictures import Header, turn
from codetr.cli import app
from codetr_client.detections import Detections
from demo.shapes import CLASS_NAMES
from demo.shapes.dataset import write_dataset
from demo.shapes.draw import Sample, generate
from perf.accuracy.collect import collect
from perf.accuracy.dataset import Dataset, category_of_label, read_dataset
from perf.accuracy.scores import report
from serving.errors import CodetrError

SEED, IMAGES = 8, 6
TURNED = 6  # an EXIF orientation


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of shapes in `images/`, and their annotations; tests must not change them."""
    return write_dataset(tmp_path_factory.mktemp("shapes"), IMAGES, SEED)


@pytest.fixture(name="annotations")
def copied(shapes: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(shapes.parent, tmp_path / "data") / shapes.name


def change(annotations: Path, edit: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Edit an annotation file; return its new content."""
    whole: dict[str, Any] = json.loads(annotations.read_text())
    edit(whole)
    annotations.write_text(json.dumps(whole))
    return whole


def detect(data: bytes) -> Detections:
    """Find three quarters of the shapes of the picture, 2 pixels away: an AP that is neither 0 nor 1."""
    upright = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    index = min(range(IMAGES), key=lambda i: _difference(sample_of(i).image[..., ::-1], upright))
    sample = sample_of(index)
    kept = np.arange(len(sample.labels)) % 4 != 3
    scores = (0.9 - 0.05 * np.arange(len(sample.labels)) - 0.003 * index).astype(np.float32)  # all of them differ
    boxes = sample.boxes.astype(np.float32) + 2
    return Detections.named(boxes[kept], scores[kept], sample.labels.astype(np.int32)[kept], CLASS_NAMES)


@cache
def sample_of(index: int) -> Sample:
    return generate(SEED, index)


def _difference(a: Any, b: Any) -> float:
    return float(np.abs(a.astype(float) - b).mean()) if a.shape == b.shape else 255.0


def evaluated(dataset: Dataset, output: Path) -> dict[str, Any]:
    """Return the figures of `detect`."""
    matched = category_of_label(dataset, CLASS_NAMES)
    found = collect(dataset, output / "results.jsonl", "test", lambda: detect, CLASS_NAMES)
    return report(dataset, "test", found, matched, output)


@pytest.fixture(scope="module")
def expected(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of the unchanged data set."""
    figures = evaluated(read_dataset(shapes, shapes.parent / "images"), tmp_path_factory.mktemp("expected"))
    assert 0.1 < figures["ap"] < 0.9
    assert -1 < figures["ap_small"] < figures["ap_large"]
    return figures


def renumber(whole: dict[str, Any], image: Callable[[int], Any], category: Callable[[int], Any]) -> None:
    for entry in whole["images"]:
        entry["id"] = image(entry["id"])
    for entry in whole["categories"]:
        entry["id"] = category(entry["id"])
    for entry in whole["annotations"]:
        entry["image_id"], entry["category_id"] = image(entry["image_id"]), category(entry["category_id"])


def annotation_ids(id_of: Callable[[int], Any]) -> Callable[[dict[str, Any]], None]:
    def edit(whole: dict[str, Any]) -> None:
        for index, entry in enumerate(whole["annotations"]):
            entry["id"] = id_of(index)

    return edit


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def edit(whole: dict[str, Any]) -> None:
        for entry in (*whole["images"], *whole["annotations"]):
            for key in keys:
                entry.pop(key, None)

    return edit


def shuffle(whole: dict[str, Any]) -> None:
    for entries in (whole["images"], whole["annotations"], whole["categories"]):
        entries.reverse()


def add_root(whole: dict[str, Any]) -> None:
    for entry in whole["categories"]:
        entry["supercategory"] = "shapes"
    whole["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})


def add_boxless(whole: dict[str, Any]) -> None:
    whole["annotations"] += [{**whole["annotations"][0], "bbox": box} for box in ([], [5, 5, 0, 3])]


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(annotation_ids(lambda index: index), id="annotations from 0"),
        pytest.param(annotation_ids(lambda index: 7), id="one id for all annotations"),
        pytest.param(annotation_ids(str), id="text for annotations"),
        pytest.param(lambda whole: [each.pop("id") for each in whole["annotations"]], id="annotations have no ids"),
        pytest.param(lambda whole: renumber(whole, lambda i: i - 1, lambda c: c - 1), id="images, categories from 0"),
        pytest.param(lambda whole: renumber(whole, lambda i: f"image {i}", str), id="text for images and categories"),
        pytest.param(lambda whole: renumber(whole, lambda i: 10**18 - i, lambda c: 91 - 3 * c), id="descending"),
        pytest.param(
            lambda whole: renumber(whole, lambda i: i if i % 2 else str(i), lambda c: c), id="numbers and text"
        ),
        pytest.param(shuffle, id="in another order"),
        pytest.param(without("iscrowd", "width", "height"), id="no crowd and no sizes"),
        pytest.param(add_root, id="Roboflow's root"),
        pytest.param(add_boxless, id="annotations without a box"),
    ],
)
def test_the_same_objects_have_the_same_ap(
    annotations: Path, tmp_path: Path, expected: dict[str, Any], edit: Callable[[dict[str, Any]], None]
) -> None:
    whole = change(annotations, edit)
    result = evaluated(read_dataset(annotations, annotations.parent / "images"), tmp_path / "out")
    for key in (
        "ap",
        "ap50",
        "ap75",
        "ap_small",
        "ap_medium",
        "ap_large",
        "ar100",
        "classes",
        "images",
        "orientations",
    ):
        assert result[key] == expected[key], key
    rows = json.loads((tmp_path / "out" / "detections.json").read_text())
    own = [{entry["id"] for entry in whole[key]} for key in ("images", "categories")]
    assert rows
    assert all(row["image_id"] in own[0] and row["category_id"] in own[1] for row in rows)
    assert all(row.keys() == {"image_id", "category_id", "bbox", "score"} for row in rows)
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()[1:]
    assert {json.loads(line)["image_id"] for line in lines} == own[0]


def test_areas_of_boxes_leave_sizes_apart(annotations: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    change(annotations, without("area"))
    result = evaluated(read_dataset(annotations, annotations.parent / "images"), tmp_path / "out")
    assert result["ap"] == expected["ap"]
    assert result["ap_large"] > -1
    assert any("have no area; it is taken from the box" in note for note in result["notes"])


def test_a_run_over_ids_of_text_continues(annotations: Path, tmp_path: Path) -> None:
    change(annotations, lambda whole: renumber(whole, lambda i: f"image {i}", str))
    dataset = read_dataset(annotations, annotations.parent / "images")
    first = evaluated(dataset, tmp_path / "out")
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    (tmp_path / "out" / "results.jsonl").write_text("\n".join(lines[:3]) + "\n")
    second = evaluated(dataset, tmp_path / "out")
    assert second["ap"] == first["ap"]
    assert (tmp_path / "out" / "results.jsonl").read_text().splitlines()[:3] == lines[:3]


def test_a_compressed_file_is_that_file(annotations: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    compressed = annotations.with_suffix(".json.gz")
    compressed.write_bytes(gzip.compress(annotations.read_text().encode("utf-16")))
    assert evaluated(read_dataset(compressed, annotations.parent / "images"), tmp_path / "out")["ap"] == expected["ap"]


def test_boxes_of_stored_pixels_have_the_ap_of_upright_ones(
    annotations: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    folder = annotations.parent / "images"
    headers: dict[int, Header] = {}
    for image in json.loads(annotations.read_text())["images"]:
        upright = Image.open(folder / image["file_name"])
        exif = Image.Exif()
        exif[0x0112] = TURNED
        stored = upright.transpose(Image.Transpose.ROTATE_90)
        stored.save(folder / image["file_name"], quality=95, exif=exif)
        headers[image["id"]] = Header(stored.size, TURNED)

    def store(whole: dict[str, Any]) -> None:
        for image in whole["images"]:
            image["width"], image["height"] = headers[image["id"]].stored
        for each in whole["annotations"]:
            width, height = headers[each["image_id"]].upright
            # Rotated back: as if the upright picture were stored, and turned the other way.
            each["bbox"] = list(turn(tuple(each["bbox"]), Header((width, height), 8)))

    change(annotations, store)
    dataset = read_dataset(annotations, folder)
    result = evaluated(dataset, tmp_path / "out")
    assert result["ap"] == pytest.approx(expected["ap"], abs=1e-6)
    assert any("stored turned (EXIF orientation), and their boxes" in note for note in result["notes"])


def test_missing_pictures_are_refused_or_left_out_as_asked(annotations: Path) -> None:
    folder = annotations.parent / "images"
    names = [image["file_name"] for image in json.loads(annotations.read_text())["images"]]
    for name in names[:4]:
        (folder / name).unlink()
    message = rf"4 of 6 images are not in .*images: {names[0]}, {names[1]}, {names[2]}, \.\.\.; give the folder"
    with pytest.raises(CodetrError, match=message):
        read_dataset(annotations, folder)
    dataset = read_dataset(annotations, folder, skip_missing=True)
    assert [image.path.name for image in dataset.images] == names[4:]
    assert not dataset.is_whole
    assert f"4 of 6 images are not in {folder} and left out: {names[0]}" in dataset.coco.notes[-1]
    assert [image.path.name for image in read_dataset(annotations, folder, 1, skip_missing=True).images] == names[4:5]
    for name in names[4:]:
        (folder / name).unlink()
    with pytest.raises(CodetrError, match="6 of 6 images are not in"):
        read_dataset(annotations, folder, skip_missing=True)


def test_the_first_images_are_the_files_first(annotations: Path) -> None:
    names = [image["file_name"] for image in change(annotations, shuffle)["images"]]
    dataset = read_dataset(annotations, annotations.parent / "images", 2)
    assert [image.path.name for image in dataset.images] == names[:2]
    assert (dataset.is_whole, read_dataset(annotations, annotations.parent / "images", IMAGES).is_whole) == (
        False,
        True,
    )


def test_a_file_of_crowds_alone_says_that_there_is_no_ap(annotations: Path, tmp_path: Path) -> None:
    change(annotations, lambda whole: [each.update(iscrowd=1) for each in whole["annotations"]])
    result = evaluated(read_dataset(annotations, annotations.parent / "images"), tmp_path / "out")
    assert result["ap"] == -1
    assert f"{annotations}: nothing is annotated but crowds, so there is no AP" in result["notes"]


def test_a_file_without_annotations_says_that_there_is_no_ap(annotations: Path, tmp_path: Path) -> None:
    change(annotations, lambda whole: whole.update(annotations=[]))
    result = evaluated(read_dataset(annotations, annotations.parent / "images"), tmp_path / "out")
    assert (result["ap"], result["empty_images"]) == (-1, IMAGES)
    assert result["notes"] == [f"{annotations}: nothing is annotated, so there is no AP"]


def test_the_command_says_what_it_leaves_out_before_anything_is_detected(
    annotations: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perf.accuracy.detectors.pytorch_detect", lambda *arguments: (detect, CLASS_NAMES))
    folder = annotations.parent / "images"
    name = change(annotations, add_boxless)["images"][0]["file_name"]
    (folder / name).unlink()
    arguments = ["evaluate", "--annotations", annotations, "--images", folder, "--output", tmp_path / "out"]
    options = list(map(str, [*arguments, "--source", "pytorch", "--limit", 1]))
    refused = CliRunner().invoke(app, options)
    assert isinstance(refused.exception, CodetrError)
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*options, "--skip-missing"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "annotations have no box; they are left out" in done.output
    assert f"1 of {IMAGES} images are not in" in done.output
    assert done.output.index("note: ") < done.output.index("class")
