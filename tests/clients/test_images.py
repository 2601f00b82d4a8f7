from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from codetr_client.errors import InvalidImageError
from codetr_client.images import encode, open_upright

EXIF_ORIENTATION = 0x0112


def decoded(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def rotated(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    image.getexif()[EXIF_ORIENTATION] = 6
    return image


def test_files_and_bytes_travel_unchanged(tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"anything")
    assert encode(tmp_path / "a.jpg") == encode(str(tmp_path / "a.jpg")) == encode(b"anything") == b"anything"


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(slice(None), id="as it is"),
        pytest.param((slice(None), slice(None), slice(None, None, -1)), id="a BGR view, not contiguous"),
    ],
)
def test_arrays_travel_without_loss(pixels: np.ndarray, view) -> None:
    assert np.array_equal(np.asarray(decoded(encode(pixels[view]))), pixels[view])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pillow_modes_that_png_knows_travel_unchanged(pixels: np.ndarray, mode: str) -> None:
    image = Image.fromarray(pixels).convert(mode)
    received = decoded(encode(image))
    assert received.mode == mode
    assert np.array_equal(np.asarray(received), np.asarray(image))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_other_pillow_modes_travel_as_rgb(pixels: np.ndarray, mode: str) -> None:
    image = Image.fromarray(pixels).convert(mode)
    assert np.array_equal(np.asarray(decoded(encode(image))), np.asarray(image.convert("RGB")))


def test_a_pillow_image_is_turned_upright_once(pixels: np.ndarray) -> None:
    received = decoded(encode(rotated(pixels)))
    assert received.size == (5, 7)
    assert received.getexif().get(EXIF_ORIENTATION, 1) == 1, "else the server would turn it again"


@pytest.mark.parametrize("as_bytes", [False, True], ids=["Pillow image", "encoded"])
def test_open_upright_applies_the_orientation(pixels: np.ndarray, as_bytes: bool) -> None:
    image = rotated(pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=image.getexif())
    upright = open_upright(buffer.getvalue() if as_bytes else image)
    assert np.array_equal(np.asarray(upright), np.rot90(pixels, -1))


def test_open_upright_scales_sixteen_bits_instead_of_clipping_them() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], np.uint16)).save(buffer, "PNG")
    assert np.asarray(open_upright(buffer.getvalue()))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.zeros((4, 4), np.uint8), id="gray"),
        pytest.param(np.zeros((4, 4, 4), np.uint8), id="four channels"),
        pytest.param(np.zeros((0, 4, 3), np.uint8), id="no rows"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(InvalidImageError, match=r"must be RGB uint8 \[H, W, 3\]"):
        encode(array)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "PNG start"])
def test_open_upright_refuses_what_is_no_picture(content: bytes) -> None:
    with pytest.raises(InvalidImageError, match="cannot decode the picture"):
        open_upright(content)
