"""The shipped weights still detect as they did when they were trained."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors

from demo import SAMPLE_IMAGE, WEIGHTS, Family
from demo.shapes import CLASS_NAMES
from demo.shapes.dataset import encode_jpeg, write_dataset
from demo.shapes.draw import generate
from perf.accuracy.collect import collect
from perf.accuracy.dataset import category_of_label, read_dataset
from perf.accuracy.detectors import Detect, pytorch_detect
from perf.accuracy.scores import coco_results, score

HELD_OUT_SEED = 2  # training drew data sets 1 and 3
# JPEG and drawing differ a little between versions of OpenCV.
AP_TOLERANCE = 0.01


class Expected(NamedTuple):
    """What holds of a family's weights."""

    max_bytes: float
    ap: dict[int, float]  # by number of held-out images


EXPECTED: dict[Family, Expected] = {
    "co_dino": Expected(12e6, {4: 0.976, 64: 0.947}),
    "rtdetrv2": Expected(8e6, {4: 0.960, 64: 0.950}),
}


@pytest.fixture(scope="module", params=list(WEIGHTS))
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


@pytest.fixture(scope="module")
def detect(family: Family) -> Detect:
    """Loading is strict: a key that is missing or left over is an error."""
    return pytorch_detect(f"{family}_demo", WEIGHTS[family], "float32", "cpu")[0]


def test_the_weights_are_small_and_say_what_they_are(family: Family) -> None:
    assert WEIGHTS[family].stat().st_size <= EXPECTED[family].max_bytes
    with safetensors.safe_open(WEIGHTS[family], framework="np") as file:
        metadata = file.metadata()
    assert metadata["class_names"] == ",".join(CLASS_NAMES)
    assert metadata["variant"] == f"{family}_demo"
    assert {"training_command", "data_seed", "ap_small", "ap_measured_on"} <= metadata.keys()
    assert float(metadata["ap"]) >= 0.90


@pytest.mark.parametrize("images", [4, pytest.param(64, marks=pytest.mark.slow)])
def test_accuracy_on_held_out_images_is_what_it_was(
    family: Family, detect: Detect, tmp_path: Path, images: int
) -> None:
    annotations = write_dataset(tmp_path, images, HELD_OUT_SEED)
    dataset = read_dataset(annotations, tmp_path / "images")
    found = collect(dataset, tmp_path / "results.jsonl", "pytorch", lambda: detect, CLASS_NAMES)
    accuracy = score(dataset, coco_results(found, category_of_label(dataset, CLASS_NAMES).categories))
    assert accuracy.ap == pytest.approx(EXPECTED[family].ap[images], abs=AP_TOLERANCE)


def test_nothing_is_found_where_nothing_is(detect: Detect) -> None:
    empty = next(sample for index in range(200) if not len((sample := generate(HELD_OUT_SEED, index)).labels))
    images = [empty.image, np.zeros((300, 200, 3), np.uint8), np.full((200, 500, 3), 255, np.uint8)]
    for image in images:
        assert detect(encode_jpeg(image)).scores.max(initial=0) < 0.3


def test_the_sample_image_shows_every_class(detect: Detect) -> None:
    found = detect(SAMPLE_IMAGE.read_bytes()).above(0.5)
    assert set(found.names) == set(CLASS_NAMES)
    assert len(found) == len(generate(4, 3864, (480, 720)).labels)
