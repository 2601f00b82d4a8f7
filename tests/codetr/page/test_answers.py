"""What the page is sent about a picture."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from codetr.page.answers import MAX_SHOWN, answer, failure, shown_picture
from codetr_client import errors
from codetr_client.detections import Detections
from codetr_client.exif import ORIENTATION


def detections(labels: list[int], names: tuple[str, ...]) -> Detections:
    N = len(labels)
    boxes = np.tile(np.float32([10, 20, 40, 60]), (N, 1))
    return Detections.named(boxes, np.linspace(0.9, 0.1, N, dtype=np.float32), np.array(labels, np.int32), names)


def encoded(image: Image.Image, form: str, orientation: int | None = None) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    image.save(buffer, form, exif=exif)
    return buffer.getvalue()


def opened(content: bytes) -> tuple[tuple[int, int], Image.Image]:
    shown = shown_picture(content)
    assert shown is not None
    head, data = shown.url.split(",")
    assert head == "data:image/jpeg;base64"
    return shown.size, Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(("orientation", "size"), [(1, (60, 40)), (3, (60, 40)), (6, (40, 60)), (None, (60, 40))])
def test_a_picture_is_shown_as_the_server_turns_it(form: str, orientation: int | None, size: tuple[int, int]) -> None:
    image = Image.new("RGB", (60, 40), "white")
    image.paste("red", (0, 0, 20, 40))  # left; turned by 180 degrees it is right, by 90 above
    found, picture = opened(encoded(image, form, orientation))
    assert found == picture.size == size
    place = {None: (5, 20), 1: (5, 20), 3: (55, 20), 6: (20, 5)}[orientation]
    red, green, blue = np.asarray(picture.convert("RGB"))[place[1], place[0]].tolist()
    assert red > 200
    assert max(green, blue) < 60
    assert "exif" not in picture.info, "it would be turned twice"


def test_large_pictures_are_shown_smaller_and_keep_their_size() -> None:
    size, picture = opened(encoded(Image.new("RGB", (5000, 1000)), "JPEG"))
    assert size == (5000, 1000)
    assert picture.size == (MAX_SHOWN, round(MAX_SHOWN / 5))


def test_sixteen_bits_are_shown_by_their_upper_eight() -> None:
    image = Image.fromarray(np.full((40, 60), 0x80FF, np.uint16))
    _, picture = opened(encoded(image, "PNG"))
    assert picture.convert("L").getpixel((5, 5)) == pytest.approx(0x80, abs=1)


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"<svg/>"])
def test_what_cannot_be_opened_is_not_shown(content: bytes) -> None:
    assert shown_picture(content) is None


def test_rows_stand_in_one_order_and_ids_are_labels_plus_one() -> None:
    found = answer(detections([2, 0, 5], ("cat", "N/A", "dog")), ("cat", "N/A", "dog"), None, 0.25)
    json.dumps(found)
    assert [each["label"] for each in found["detections"]] == [2, 0, 5]
    assert [each["category_id"] for each in found["annotations"]] == [3, 1, 6]
    assert [each["name"] for each in found["looks"]] == ["dog", "cat", "class 5"]
    assert [(each["id"], each["name"]) for each in found["categories"]] == [(1, "cat"), (3, "dog"), (6, "class 5")]
    first = found["annotations"][0]
    assert (first["bbox"], first["area"], first["iscrowd"]) == ([10, 20, 30, 40], 1200, 0)
    assert (found["width"], found["height"], found["picture"], found["seconds"]) == (None, None, None, 0.25)


def test_names_are_shown_without_what_turns_text_and_kept_in_the_json() -> None:
    name = "a\u202e<b>\x1b"
    found = answer(detections([0], (name,)), (name,), None, 0.0)
    assert found["detections"][0]["name"] == name
    assert found["looks"][0]["name"] == "a\\u202e<b>\\x1b"


@pytest.mark.parametrize(
    ("error", "status", "again"),
    [
        (errors.RequestRefusedError("a"), 400, False),
        (errors.InvalidImageError("a"), 400, False),
        (errors.ModelNotFoundError("a"), 404, True),
        (errors.ModelNotReadyError("a"), 503, True),
        (errors.ServerBusyError("a"), 503, True),
        (errors.ServerTimeoutError("a"), 504, False),
        (errors.RequestDeniedError("a"), 502, False),
        (errors.ServerUnreachableError("a"), 502, True),
        (errors.ServerProtocolError("a"), 502, False),
        (errors.ServerTlsError("a"), 502, False),
        (errors.ServerFaultError("a"), 502, False),
        (errors.CodetrError("a\nb"), 502, False),
    ],
)
def test_errors_say_whether_the_same_may_succeed_later(error: errors.CodetrError, status: int, again: bool) -> None:
    assert failure(error) == (status, {"error": str(error).replace("\n", "\\n"), "again": again})
