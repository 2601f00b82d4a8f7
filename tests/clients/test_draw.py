from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from codetr_client.detections import Detections
from codetr_client.drawing import GAP, colour, draw, side_by_side


def detections(*boxes: list[float], label: int = 3) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.5, count, dtype=np.float32),
        np.full(count, label, np.int32),
        ("traffic light",) * count,
    )


def changed(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return (np.asarray(picture) != np.asarray(Image.new("RGB", size))).any(axis=2)


def test_boxes_are_drawn_in_the_colour_of_their_class() -> None:
    picture = draw(Image.new("RGB", (400, 300)), detections([100, 100, 200, 250]))
    assert picture.getpixel((100, 200)) == colour(3)
    assert picture.getpixel((200, 200)) == colour(3)
    assert picture.getpixel((150, 200)) == (0, 0, 0), "the inside stays as it was"


def test_the_picture_given_is_not_touched() -> None:
    original = Image.new("RGB", (400, 300))
    draw(original, detections([100, 100, 200, 250]))
    assert original.getbbox() is None
    array = np.zeros((300, 400, 3), np.uint8)
    draw(array, detections([100, 100, 200, 250]))
    assert not array.any()


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([0, 0, 399, 299], id="box as large as the picture"),
        pytest.param([390, 100, 399, 120], id="box at the right border"),
        pytest.param([10, 285, 60, 299], id="box at the lower border"),
    ],
)
def test_the_label_stays_inside_the_picture(box: list[float]) -> None:
    plain = changed(draw(np.zeros((300, 400, 3), np.uint8), detections([100, 100, 200, 200])), (400, 300)).sum()
    perimeter = 2 * 101 + 2 * 99
    label_area = plain - perimeter
    drawn = changed(draw(np.zeros((300, 400, 3), np.uint8), detections(box)), (400, 300)).sum()
    assert drawn >= label_area * 0.9, "a label cut by the border would be smaller"


def test_lines_and_text_grow_with_the_picture() -> None:
    def share(scale: int) -> float:
        size = (400 * scale, 300 * scale)
        box = [100.0 * scale, 100 * scale, 200 * scale, 250 * scale]
        return float(changed(draw(Image.new("RGB", size), detections(box)), size).mean())

    assert share(16) == pytest.approx(share(2), rel=0.3)


def test_tiny_pictures_get_boxes_without_text() -> None:
    picture = draw(Image.new("RGB", (8, 8)), detections([1, 1, 6, 6]))
    assert changed(picture, (8, 8)).sum() == 20


def test_boxes_with_swapped_corners_do_not_stop_the_drawing() -> None:
    assert draw(Image.new("RGB", (100, 100)), detections([50, 50, 40, 40])).getpixel((50, 50)) == colour(3)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        pytest.param("a\nb", r"a\nb", id="two lines"),
        pytest.param("\x1b[31ma", r"\x1b[31ma", id="control characters"),
        pytest.param("caf\udce9", r"caf\udce9", id="no text"),
    ],
)
def test_names_of_every_kind_are_drawn_in_one_line(name: str, shown: str) -> None:
    found, picture = detections([20, 40, 60, 80]), Image.new("RGB", (200, 100))
    drawn, expected = (
        draw(picture, Detections(found.boxes, found.scores, found.labels, (each,))) for each in (name, shown)
    )
    assert np.array_equal(np.asarray(drawn), np.asarray(expected))


def test_colours_are_stable_and_neighbours_differ() -> None:
    assert colour(17) == colour(17)
    for first in range(80):
        for second in range(first + 1, min(first + 4, 80)):
            assert max(abs(a - b) for a, b in zip(colour(first), colour(second), strict=True)) > 60


def test_two_pictures_stand_side_by_side() -> None:
    pair = side_by_side(Image.new("RGB", (30, 20), "red"), Image.new("RGB", (40, 10), "blue"))
    assert pair.size == (30 + GAP + 40, 20)
    places = [(29, 19), (30, 0), (29 + GAP, 0), (30 + GAP, 9), (30 + GAP, 10)]
    white = (255, 255, 255)
    assert [pair.getpixel(place) for place in places] == [(255, 0, 0), white, white, (0, 0, 255), white]
