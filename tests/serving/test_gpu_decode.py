"""What decodes on a GPU, here with nvImageCodec's own libjpeg-turbo: the way of a file, not a GPU's rounding."""

from __future__ import annotations

import sys
from functools import cache
from io import BytesIO
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import serving.gpu_decode
import serving.triton
from codetr_client import jpeg
from perf.fuzz.sandbox import Made
from perf.fuzz.sources import sources
from perf.pictures import picture
from serving import gpu_resize
from serving.decode import ImageLimits
from serving.errors import CodetrError
from serving.preprocess import preprocess, resize_and_pad
from serving.rules import Pixels
from serving.triton import Preprocess
from tests.conftest import SEED
from tests.markers import missing

JPEGS = sources()["jpeg"]
NONE_FOR_A_GPU = [kind for kind in JPEGS if "CMYK" in kind or "progressive" in kind]
SIZE = 64, 96
EXIF_ORIENTATION = 0x0112


def on(rule: Pixels | None = None, limits: ImageLimits | None = None, device: int | None = None) -> Any:
    try:
        from nvidia import nvimgcodec  # noqa: F401
    except ImportError:
        missing("no nvImageCodec: pip install -e '.[dev]' brings it on x86-64 Linux")
    return serving.gpu_decode.GpuPreprocessor(*SIZE, limits or ImageLimits(), rule or Pixels(), device)


@cache
def on_a_gpu() -> Any:
    """Return one for all tests: beside other work on an H100, with one each, eleven of them took four minutes."""
    return on(device=0)


def canvas() -> np.ndarray:
    return np.full((*SIZE, 3), 99, np.uint8)


def encoded(kind: str = "JPEG", image: Image.Image | None = None, **options: Any) -> bytes:
    file = BytesIO()
    (image or Image.fromarray(picture(90, 70, seed=4))).save(file, kind, **options)
    return file.getvalue()


def same_as_on_the_cpu(data: bytes, rule: Pixels | None = None) -> bool:
    found = on(rule)(data, canvas())
    expected = preprocess(data, *SIZE, rule=rule or Pixels())
    return found is not None and found[1:] == expected[1:] and bool((found.images == expected.images).all())


@pytest.mark.parametrize("kind", [kind for kind in JPEGS if kind not in NONE_FOR_A_GPU])
def test_every_usual_jpeg(kind: str) -> None:
    assert same_as_on_the_cpu(JPEGS[kind])


@pytest.mark.parametrize("orientation", range(1, 10))
def test_it_is_turned_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    assert same_as_on_the_cpu(encoded(exif=exif.tobytes()))


@pytest.mark.parametrize("sampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(
    "rule", [Pixels(resize="stretch", antialias=True), Pixels(antialias=True, shortest_edge=40, longest_edge=66)]
)
def test_by_every_rule(rule: Pixels, sampling: str) -> None:
    assert same_as_on_the_cpu(encoded(subsampling=sampling), rule)


# Components R, G and B, and as 1, 2 and 3: in the frame with their sampling, in the scan with their tables.
IN_FRAME = b"R\x11\0G\x11\0B\x11\0", b"\x01\x11\0\x02\x11\0\x03\x11\0"
IN_SCAN = b"\x03R\0G\0B\0", b"\x03\x01\0\x02\0\x03\0"


def rgb() -> bytes:
    data = encoded(keep_rgb=True)
    assert all(part in data for part in (b"Adobe", IN_FRAME[0], IN_SCAN[0]))
    return data


def quartered() -> bytes:
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411]
    return cv2.imencode(".jpg", picture(90, 70, seed=4), options)[1].tobytes()


LEFT_TO_THE_CPU: dict[str, bytes] = {
    "nothing": b"",
    "no image": b"\xff\xd8\xff" + bytes(50),
    **{kind: JPEGS[kind] for kind in NONE_FOR_A_GPU},
    "PNG": encoded("PNG"),
    "WebP": encoded("WEBP"),
    "RGB by Adobe's segment": rgb().replace(*IN_FRAME).replace(*IN_SCAN),
    "RGB by its components' names": rgb().replace(b"Adobe", b"Ad0be"),
    "4:1:1": quartered(),
    "no end": encoded()[:-2],
    "cut, with an end": encoded(quality=95)[:-2000] + jpeg.END,
    "cut restarts": encoded(quality=95, restart_marker_blocks=1)[:-2000] + jpeg.END,
}


@pytest.mark.parametrize("kind", LEFT_TO_THE_CPU)
def test_the_cpu_decodes_or_refuses_the_rest(kind: str) -> None:
    assert on()(LEFT_TO_THE_CPU[kind], canvas()) is None


def cut(share: float, **options: Any) -> bytes:
    """Return a JPEG without the last part of its data, and an end marker."""
    whole = encoded(quality=95, **options)
    start = jpeg.read_jpeg(whole).scans[0].start
    return whole[: start + int(share * (len(whole) - start))] + jpeg.END


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("options", [{}, {"subsampling": "4:4:4"}, {"restart_marker_blocks": 2}])
def test_a_file_cut_in_its_data_is_left_to_the_cpu(options: dict[str, Any], share: float) -> None:
    """A GPU's decoder takes it, and shows something."""
    assert on()(cut(share, **options), canvas()) is None


def test_a_cut_file_is_decoded_where_such_are_accepted() -> None:
    found = on(limits=ImageLimits(damaged_jpeg="accept"))(cut(0.6), canvas())
    assert found is not None
    expected = preprocess(cut(0.6), *SIZE, ImageLimits(damaged_jpeg="accept"))
    np.testing.assert_array_equal(found.images, expected.images)


def test_a_gray_corner_is_no_sign_of_a_cut() -> None:
    assert same_as_on_the_cpu(encoded(image=Image.new("RGB", (64, 64), (jpeg.MISSING,) * 3)))


@pytest.mark.parametrize(
    "limits", [ImageLimits(max_bytes=100), ImageLimits(max_pixels=90 * 70 - 1), ImageLimits(formats=("PNG",))]
)
def test_what_is_beyond_the_limits_is_not_decoded(limits: ImageLimits) -> None:
    assert on(limits=limits)(encoded(), canvas()) is None


def test_hostile_files_are_decoded_as_on_the_cpu_or_left_to_it() -> None:
    """None is accepted that the CPU would refuse. The limit of pixels keeps bombs small."""
    limits = ImageLimits(max_pixels=200_000)
    made, decoded = on(limits=limits), 0
    for number in range(300):
        data = Made("jpeg", SEED, number).data()
        found = made(data, canvas())
        if found is not None:
            expected = preprocess(data, *SIZE, limits)
            assert found[1:] == expected[1:], number
            np.testing.assert_array_equal(found.images, expected.images, str(number))
            decoded += 1
    assert 25 <= decoded < 300


def test_it_has_decoded_and_resized_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    resized: list[tuple[int, ...]] = []

    def seen(image: torch.Tensor, *args: Any) -> Any:
        resized.append(tuple(image.shape))
        return gpu_resize.resize_and_pad(image, *args)

    monkeypatch.setattr(serving.gpu_decode, "resize_and_pad", seen)
    on()
    assert resized == [(33, 49, 3)]


def test_a_gpu_without_memory_leaves_a_file_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(serving.gpu_decode, "resize_and_pad", full)
    assert on()(encoded(), canvas()) is None


def test_a_gpu_that_is_not_there_stops_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(CodetrError, match="jpeg_decoder gpu: PyTorch sees 2 GPUs, none of number 2"):
        on(device=2)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with pytest.raises(CodetrError, match="it needs PyTorch and nvImageCodec: pip install nvidia-nvimgcodec-cu13"):
        serving.gpu_decode.GpuPreprocessor(*SIZE, ImageLimits(), Pixels())


def step(monkeypatch: pytest.MonkeyPatch, decoder: str = "gpu") -> Preprocess:
    """Return the server's step, which decodes on what stands for its GPU."""
    made = on()
    monkeypatch.setattr(serving.gpu_decode, "GpuPreprocessor", lambda *args: made)
    outputs = [{"name": "images", "dims": [*SIZE, 3]}]
    return Preprocess({"output": outputs, "parameters": {"jpeg_decoder": {"string_value": decoder}}})


def test_a_request_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [encoded(), encoded("PNG"), encoded(quality=50)]
    on_the_cpu: list[bytes] = []

    def spied(data: bytes, *args: Any) -> Any:
        on_the_cpu.append(data)
        return preprocess(data, *args)

    monkeypatch.setattr(serving.triton, "preprocess", spied)
    result = step(monkeypatch)({"image": np.array(files, object)[:, None]}, {})
    np.testing.assert_array_equal(result["images"], [preprocess(file, *SIZE).images for file in files])
    assert on_the_cpu == [files[1]]


def test_refusals_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CodetrError, match="damaged JPEG image: it is cut short, its end marker is missing"):
        step(monkeypatch)({"image": np.array([encoded()[:-2]], object)[:, None]}, {})


def test_another_decoder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CodetrError, match="jpeg_decoder: expected cpu or gpu, got 'cuda'"):
        step(monkeypatch, "cuda")


# ---- On a GPU ----


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [kind for kind in JPEGS if kind not in NONE_FOR_A_GPU])
def test_a_gpu_rounds_a_little_differently(kind: str) -> None:
    found = on_a_gpu()(JPEGS[kind], canvas())
    expected = preprocess(JPEGS[kind], *SIZE)
    assert found is not None
    assert found[1:] == expected[1:]
    apart = np.abs(found.images.astype(int) - expected.images)
    assert apart.mean() < 1
    assert apart.max() <= 8


@pytest.mark.gpu
def test_a_gpu_resizes_to_the_very_pixels() -> None:
    for rule in (Pixels(), Pixels(resize="stretch", antialias=True)):
        image = np.random.default_rng(5).integers(0, 256, (211, 307, 3), dtype=np.uint8)
        expected, valid = resize_and_pad(image, *SIZE, rule)
        actual, filled = gpu_resize.resize_and_pad(torch.from_numpy(image).cuda(), *SIZE, rule)
        assert filled == valid
        np.testing.assert_array_equal(actual.cpu().numpy(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_gpu_leaves_a_cut_file_to_the_cpu(share: float) -> None:
    assert on_a_gpu()(cut(share), canvas()) is None
