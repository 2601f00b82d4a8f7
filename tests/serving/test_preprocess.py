from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from serving.contract import PIXEL_MEAN, PIXEL_STD
from serving.preprocess import preprocess, resize_and_pad, valid_size
from serving.rules import Pixels

# Arrays of the original mmdetection pipeline, see `tests/data/README.md`.
DATA = Path(__file__).parents[1] / "data"
GOLDEN = np.load(DATA / "preprocess.npz")
RTDETRV2 = np.load(DATA / "preprocess_rtdetrv2.npz")
DETR = np.load(DATA / "preprocess_detr.npz")
PILLOW = int(PIL.__version__.split(".")[0])
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


def cases(golden: Any, array: str) -> list[str]:
    return sorted(key.removesuffix(f"/{array}") for key in golden.files if key.endswith(f"/{array}"))


@pytest.mark.parametrize("case", cases(RTDETRV2, "image_rgb_u8"))
def test_stretching_equals_rt_detr(case: str) -> None:
    """Pillow changed the order of its two passes in release 13; the original runs on either."""
    image, (height, width) = RTDETRV2[f"{case}/image_rgb_u8"], RTDETRV2[f"{case}/target_hw"].tolist()
    images, valid = resize_and_pad(image, height, width, Pixels("stretch", antialias=True))
    assert valid == (height, width)
    accepted = [RTDETRV2[f"{case}/resized_u8"]]
    if f"{case}/resized_u8_hfirst" in RTDETRV2:
        accepted.append(RTDETRV2[f"{case}/resized_u8_hfirst"])
    assert any(np.array_equal(images, expected) for expected in accepted)


@pytest.mark.parametrize(("size", "engine"), [((640, 80), (96, 144)), ((500, 400), (100, 320)), ((90, 300), (96, 144))])
def test_every_pillow_filters_across_first(size: tuple[int, int], engine: tuple[int, int]) -> None:
    """Pillow 13 goes down first for the first two; the pixels between are rounded, so the order is seen."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    across = np.array(Image.fromarray(image).resize((engine[1], size[0]), Image.Resampling.BILINEAR))
    expected = np.array(Image.fromarray(across).resize((engine[1], engine[0]), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_and_pad(image, *engine, Pixels("stretch", antialias=True))[0], expected)


@pytest.mark.parametrize("case", cases(DETR, "image_rgb_u8"))
def test_edges_equal_detr(case: str) -> None:
    short, long = DETR["settings_size_max"].tolist()
    image, expected = DETR[f"{case}/image_rgb_u8"], DETR[f"{case}/resized_rgb_u8"]
    images, valid = resize_and_pad(image, 160, 160, Pixels(antialias=True, shortest_edge=short, longest_edge=long))
    assert valid == expected.shape[:2]
    # Pillow 13 sometimes makes the vertical pass first, which rounds differently; DETR's data are of Pillow 12.
    assert np.abs(images[: valid[0], : valid[1]].astype(int) - expected).max() <= (1 if PILLOW >= 13 else 0)
    assert not images[valid[0] :].any()
    assert not images[:, valid[1] :].any()


@pytest.mark.parametrize("edges", [(800, 1333), (80, 133)], ids=str)
def test_sizes_equal_detr_where_the_engine_has_room(edges: tuple[int, int]) -> None:
    for w, h, resized_w, resized_h in DETR["sizes_{}_{}".format(*edges)].tolist():
        assert valid_size(h, w, 9999, 9999, Pixels("fit", True, *edges)) == (resized_h, resized_w), (w, h)


def test_detr_sizes_shrink_by_the_same_rule_where_the_engine_has_no_room() -> None:
    """The longer side still follows from the rounded shorter one, and nothing larger would fit."""
    rule = Pixels("fit", True, 800, 1333)
    for w, h, resized_w, resized_h in DETR["sizes_800_1333"].tolist():
        for height, width in ((800, 1344), (640, 640), (1344, 800), (97, 1001)):
            valid_h, valid_w = valid_size(h, w, height, width, rule)
            assert 1 <= valid_h <= min(height, max(resized_h, 1))
            assert 1 <= valid_w <= min(width, max(resized_w, 1))
            if resized_h <= height and resized_w <= width:
                assert (valid_h, valid_w) == (resized_h, resized_w)
                continue
            short, long = min(h, w), max(h, w)
            size = min(valid_h, valid_w)
            larger = (size + 1, (size + 1) * long // short)
            room = (height, width) if h <= w else (width, height)
            assert larger[0] > room[0] or larger[1] > room[1], (w, h, height, width)


@pytest.mark.parametrize("rule", [Pixels(), Pixels("stretch"), Pixels("fit", antialias=True)], ids=repr)
@pytest.mark.parametrize("size", [(30, 70), (70, 30), (32, 48)], ids="{0[0]}x{0[1]}".format)
def test_a_canvas_in_a_batch_is_filled_whole_and_alone(size: tuple[int, int], rule: Pixels) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    batch = np.full((3, 32, 48, 3), 7, np.uint8)
    filled, valid = resize_and_pad(image, 32, 48, rule, batch[1])
    assert np.shares_memory(filled, batch[1])
    alone, valid_alone = resize_and_pad(image, 32, 48, rule)
    assert valid == valid_alone
    np.testing.assert_array_equal(batch[1], alone)
    assert not batch[1, valid[0] :].any()
    assert not batch[1, :, valid[1] :].any()
    assert (batch[::2] == 7).all()
