from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.contract import PIXEL_MEAN, PIXEL_STD
from serving.preprocess import preprocess, resize_and_pad

# Arrays of the original mmdetection pipeline, see `tests/data/README.md`.
GOLDEN = np.load(Path(__file__).parents[1] / "data" / "preprocess.npz")
MEAN, STD = np.float32(PIXEL_MEAN), np.float32(PIXEL_STD)


def network_input(images: np.ndarray, valid: tuple[int, int]) -> np.ndarray:
    """What the engine does first: normalise, zero the padding; float32 `[3, H, W]`."""
    normalised = (images.astype(np.float32) - MEAN) / STD
    normalised[valid[0] :] = 0
    normalised[:, valid[1] :] = 0
    return normalised.transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("case", "engine", "valid"),
    [
        pytest.param("landscape", (96, 144), (91, 144), id="rounds up where the height is 90.56"),
        pytest.param("wide", (96, 144), (48, 144), id="padding below"),
        # mmcv's rule does not know orientations: it fits a portrait into 144x96 (h x w), the size of such an engine.
        pytest.param("tall_portrait", (144, 96), (144, 91), id="portrait"),
        pytest.param("square", (96, 144), (96, 96), id="padding at the right"),
        pytest.param("exact", (96, 144), (96, 144), id="no padding"),
        pytest.param("downscale", (96, 144), (96, 127), id="smaller"),
        pytest.param("mmdet_original_test_pipeline", (100, 159), (100, 159), id="the published test pipeline"),
    ],
)
def test_equals_mmdetection(case: str, engine: tuple[int, int], valid: tuple[int, int]) -> None:
    image, expected = GOLDEN[f"{case}/image_rgb_u8"], GOLDEN[f"{case}/input"][0]
    images, image_size = resize_and_pad(image, *engine)
    assert image_size == valid
    scale_w, scale_h = GOLDEN[f"{case}/scale_factor_wh"]
    np.testing.assert_allclose((valid[0] / image.shape[0], valid[1] / image.shape[1]), (scale_h, scale_w), rtol=1e-12)
    actual = network_input(images, image_size)
    # The reference padded before it normalised, so only the valid part is comparable.
    np.testing.assert_allclose(
        actual[:, : valid[0], : valid[1]], expected[:, : valid[0], : valid[1]], rtol=0, atol=2e-6
    )


def test_portrait_in_a_landscape_engine_keeps_its_ratio() -> None:
    image, expected = GOLDEN["tall_portrait/image_rgb_u8"], GOLDEN["tall_portrait/cpp_input"][0]
    images, image_size = resize_and_pad(image, 96, 144)
    assert image_size == tuple(GOLDEN["tall_portrait/cpp_valid_hw"])
    np.testing.assert_allclose(network_input(images, image_size)[:, :, :60], expected[:, :, :60], rtol=0, atol=2e-6)
    assert not images[:, 60:].any()


@pytest.mark.parametrize(
    ("size", "valid"),
    [
        pytest.param((1, 1), (96, 96), id="one pixel"),
        pytest.param((5000, 1), (96, 1), id="a side that would round to 0"),
        pytest.param((2, 3000), (1, 144), id="the other side"),
    ],
)
def test_extreme_sizes(size: tuple[int, int], valid: tuple[int, int]) -> None:
    images, image_size = resize_and_pad(np.full((*size, 3), 200, np.uint8), 96, 144)
    assert images.shape == (96, 144, 3)
    assert image_size == valid
    assert (images[: valid[0], : valid[1]] == 200).all()
    assert images.sum() == 200 * 3 * valid[0] * valid[1]


@pytest.mark.parametrize(
    ("size", "valid"),
    [
        pytest.param((6, 160), (5, 144), id="height 5.4 down"),
        pytest.param((5, 160), (5, 144), id="height 4.5 up"),
        pytest.param((120, 8), (96, 6), id="width 6.4 down"),
        pytest.param((128, 6), (96, 5), id="width 4.5 up"),
    ],
)
def test_sides_are_rounded_at_the_half(size: tuple[int, int], valid: tuple[int, int]) -> None:
    assert resize_and_pad(np.zeros((*size, 3), np.uint8), 96, 144)[1] == valid


def test_preprocess_reports_the_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    Image.fromarray(GOLDEN["landscape/image_rgb_u8"]).save(buffer, "PNG", exif=exif)
    result = preprocess(buffer.getvalue(), 96, 144)
    upright = np.rot90(GOLDEN["landscape/image_rgb_u8"], -1)
    expected, image_size = resize_and_pad(np.ascontiguousarray(upright), 96, 144)
    assert result.original_size == (97, 61)
    assert result.image_size == image_size
    np.testing.assert_array_equal(result.images, expected)
