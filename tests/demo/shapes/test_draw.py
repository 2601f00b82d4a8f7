from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from faster_coco_eval import COCO
from PIL import Image

from demo.shapes import CLASS_NAMES
from demo.shapes import draw as shapes
from demo.shapes.dataset import write_dataset
from demo.shapes.draw import generate
from demo.shapes.outlines import SUBPIXELS


def test_the_same_seed_and_index_draw_the_same_image() -> None:
    first, again = generate(5, 3), generate(5, 3)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)


@pytest.mark.parametrize(("seed", "index"), [(6, 3), (5, 4)], ids=["other seed", "other index"])
def test_another_seed_or_index_draws_another_image(seed: int, index: int) -> None:
    assert not np.array_equal(generate(5, 3, (90, 120)).image, generate(seed, index, (90, 120)).image)


def test_annotations_lie_in_the_image_and_are_as_large_as_promised() -> None:
    for index in range(40):
        image, boxes, labels, areas = generate(11, index)
        height, width = image.shape[:2]
        sides = boxes[:, 2:] - boxes[:, :2]
        assert (boxes >= 0).all()
        assert (boxes <= [width, height, width, height]).all()
        assert (sides > 0).all()
        assert (sides.max(1, initial=0) <= 0.62 * min(height, width)).all()
        assert (areas <= sides.prod(1) + 1e-3).all()
        assert set(labels.tolist()) <= set(range(len(CLASS_NAMES)))


def test_boxes_are_the_extents_of_what_stays_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repaint every item on its own and take away what later items cover; an independent way to the boxes."""
    canvases = []
    original = shapes._Canvas.annotations

    def keep(canvas: shapes._Canvas) -> object:
        canvases.append(canvas)
        return original(canvas)

    monkeypatch.setattr(shapes._Canvas, "annotations", keep)
    occluded = 0
    for index in range(12):
        sample = generate(12, index)
        canvas = canvases[-1]
        masks = [_on_canvas(item, canvas.owners.shape) for item in canvas.items]
        expected = []
        for i, item in enumerate(canvas.items):
            visible = masks[i] & ~np.any([masks[j] for j in range(i + 1, len(masks))] + [masks[i] & False], axis=0)
            occluded += int(visible.sum() < masks[i].sum())
            y, x = np.nonzero(visible)
            if item.label >= 0:
                expected.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert sample.boxes.tolist() == (np.array(expected).reshape(-1, 4) / SUBPIXELS).tolist()
    assert occluded > 5  # the test means something


def _on_canvas(item: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return the item's mask on the whole finer canvas, pixel by pixel."""
    whole = np.zeros(shape, bool)
    y, x = np.argwhere(item.mask > 0).T
    y, x = y + item.y * SUBPIXELS, x + item.x * SUBPIXELS
    inside = (y >= 0) & (y < shape[0]) & (x >= 0) & (x < shape[1])
    whole[y[inside], x[inside]] = True
    return whole


def test_annotated_shapes_differ_from_an_image_without_them() -> None:
    """Where nothing is annotated and nothing lies about, the image is smooth; inside a box it is not."""
    for index in range(10):
        image, boxes, _, _ = generate(13, index)
        blurred = cv2.medianBlur(image, 5).astype(float)
        for x1, y1, x2, y2 in boxes.round().astype(int):
            patch = blurred[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2]
            assert np.ptp(patch, axis=(0, 1)).max() > 20


def test_some_images_are_empty_some_portrait_some_landscape() -> None:
    samples = [generate(14, index) for index in range(80)]
    assert any(not len(sample.labels) for sample in samples)
    ratios = [sample.image.shape[1] / sample.image.shape[0] for sample in samples]
    assert min(ratios) < 0.7
    assert max(ratios) > 1.4


def test_the_written_data_set_is_valid_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_dataset(tmp_path, images=4, seed=3, first=10)
    coco = COCO(str(path))
    capsys.readouterr()
    content = json.loads(path.read_text())
    assert len(coco.getImgIds()) == 4
    assert [category["name"] for category in content["categories"]] == list(CLASS_NAMES)
    for number, image in enumerate(content["images"]):
        picture = Image.open(io.BytesIO((tmp_path / "images" / image["file_name"]).read_bytes()))
        sample = generate(3, 10 + number)
        assert picture.size == (image["width"], image["height"])
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert [a["category_id"] - 1 for a in annotations] == sample.labels.tolist()
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in annotations)]
        assert np.allclose(np.array(boxes).reshape(-1, 4), sample.boxes)
