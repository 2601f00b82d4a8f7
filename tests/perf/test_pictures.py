from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from perf.pictures import FORMATS, Format, encoded_picture, picture


def test_a_picture_depends_on_its_seed_only() -> None:
    assert np.array_equal(picture(64, 48, seed=1), picture(64, 48, seed=1))
    assert not np.array_equal(picture(64, 48, seed=1), picture(64, 48, seed=2))


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_decodes_to_its_size(image_format: Format) -> None:
    with Image.open(io.BytesIO(encoded_picture(70, 50, image_format))) as image:
        assert image.size == (70, 50)
        assert image.format == image_format.split("-")[0].upper()
        assert (image.mode == "L") == (image_format == "jpeg-gray")
        assert bool(image.info.get("progressive")) == (image_format == "jpeg-progressive")


def test_jpegs_are_as_heavy_as_photographs() -> None:
    bits_a_pixel = len(encoded_picture(640, 480)) * 8 / (640 * 480)
    assert 1.5 < bits_a_pixel < 3


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (8, 8), (3, 500)])
def test_odd_sizes_work(width: int, height: int) -> None:
    assert picture(width, height).shape == (height, width, 3)
