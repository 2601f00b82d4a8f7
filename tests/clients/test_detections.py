from __future__ import annotations

import json

import numpy as np
import pytest

from codetr_client.detections import Detections
from codetr_client.errors import CodetrError


@pytest.fixture
def detections() -> Detections:
    return Detections(
        np.array([[1, 2, 11, 22], [0.5, 0.5, 3, 4]], np.float32),
        np.array([0.25, 0.75], np.float32),
        np.array([2, 0], np.int32),
        ("bus", "cat"),
    )


def test_above_keeps_the_order_and_equal_scores(detections: Detections) -> None:
    assert detections.above(0.25).names == ("bus", "cat")
    kept = detections.above(0.3)
    assert (kept.names, kept.labels.tolist(), kept.boxes.tolist()) == (("cat",), [0], [[0.5, 0.5, 3, 4]])
    assert len(detections.above(0.9)) == 0


def test_of_labels_keeps_the_order_of_those_labels(detections: Detections) -> None:
    assert detections.of_labels({0, 2}).names == ("bus", "cat")
    kept = detections.of_labels({2: 90, 1: 4})
    assert (kept.names, kept.scores.tolist(), kept.boxes.tolist()) == (("bus",), [0.25], [[1, 2, 11, 22]])
    assert len(detections.of_labels(())) == 0


def test_labels_without_a_name_are_numbered() -> None:
    labels = np.array([1, 2, -1], np.int32)
    found = Detections.named(np.zeros((3, 4), np.float32), np.ones(3, np.float32), labels, ["bus", "cat"])
    assert found.names == ("cat", "class 2", "class -1")


def test_to_json_survives_json(detections: Detections) -> None:
    assert json.loads(json.dumps(detections.to_json()))[0] == {
        "box": [1, 2, 11, 22], "score": 0.25, "label": 2, "name": "bus",
    }  # fmt: skip


def test_to_coco_has_width_and_height_and_cocos_category_numbers(detections: Detections) -> None:
    results = detections.to_coco(image_id=7, category_ids=[1, 3, 6])
    assert results[0] == {"image_id": 7, "category_id": 6, "bbox": [1, 2, 10, 20], "score": 0.25}
    assert results[1]["category_id"] == 1
    json.dumps(results)


def test_to_coco_names_the_label_without_a_category(detections: Detections) -> None:
    with pytest.raises(CodetrError, match="label 2 has no COCO category: category_ids holds 2"):
        detections.to_coco(7, [1, 3])
    with pytest.raises(CodetrError, match="label 2 has no COCO category: category_ids holds 1"):
        detections.to_coco(7, {0: 5})


def test_to_coco_takes_categories_by_label(detections: Detections) -> None:
    assert [row["category_id"] for row in detections.to_coco(7, {0: 5, 2: 90})] == [90, 5]


def test_to_coco_keeps_ids_of_text_and_makes_numbers_of_numpys(detections: Detections) -> None:
    rows = detections.to_coco("image 7", {0: "01", 2: "dog"})
    assert [(row["image_id"], row["category_id"]) for row in rows] == [("image 7", "dog"), ("image 7", "01")]
    json.dumps(detections.to_coco(7, np.array([1, 3, 6]).tolist()))
    json.dumps(detections.to_coco(7, dict(enumerate(np.array([1, 3, 6])))))


def test_nothing_found_is_empty_everywhere() -> None:
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), ())
    assert (len(nothing), nothing.to_json(), nothing.to_coco(1, []), len(nothing.above(0))) == (0, [], [], 0)


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 scores do not fit boxes"):
        Detections(np.zeros((1, 4), np.float32), np.zeros(2, np.float32), np.zeros(2, np.int32), ("a", "b"))
