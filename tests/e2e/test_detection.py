"""Images in, boxes out: a real server gives what the detector gives in this process, for every kind of image."""

from __future__ import annotations

import asyncio
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

from codetr_client.aio import AsyncCoDetrClient
from codetr_client.client import CoDetrClient
from codetr_client.detections import Detections
from codetr_client.errors import ModelNotFoundError, RequestRefusedError
from perf.pictures import encoded_picture, picture
from serving.launch import TritonServer
from serving.postprocess import PostprocessSettings, postprocess
from serving.preprocess import preprocess
from tests.e2e.conftest import HEIGHT, WIDTH

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
# Of a box side relative to its image, and of a score; the engine and PyTorch differ by less than a tenth of it.
TOLERANCE = 1e-4
EXIF_ORIENTATION = 0x0112


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(picture(width, height, seed=7))


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return saved(photo(200, 120), "JPEG", exif=exif)


def sixteen_bit() -> bytes:
    gray = np.asarray(photo(150, 100).convert("L")).astype(np.uint16)
    return saved(Image.fromarray(gray * 257), "PNG")


# What is sent, made when it is needed: the huge one takes seconds.
IMAGES: dict[str, Callable[[], bytes]] = {
    "landscape": lambda: encoded_picture(640, 360),
    "portrait": lambda: encoded_picture(360, 640),
    "tiny": lambda: encoded_picture(8, 8),
    "huge": lambda: encoded_picture(6000, 4000),
    "grayscale JPEG": lambda: encoded_picture(200, 150, "jpeg-gray"),
    "progressive JPEG": lambda: encoded_picture(200, 150, "jpeg-progressive"),
    "WebP": lambda: encoded_picture(200, 150, "webp"),
    "BMP": lambda: encoded_picture(200, 150, "bmp"),
    "RGBA PNG": lambda: saved(photo(200, 150).convert("RGBA"), "PNG"),
    "CMYK JPEG": lambda: saved(photo(200, 150).convert("CMYK"), "JPEG"),
    "16-bit PNG": sixteen_bit,
    "palette PNG": lambda: saved(photo(200, 150).convert("P"), "PNG"),
    **{f"EXIF orientation {value}": (lambda value=value: turned(value)) for value in range(1, 9)},
}


@pytest.fixture(scope="session")
def detect_here(golden_config: dict[str, Any], checkpoint: Path) -> Callable[[bytes], tuple[Any, Any, Any]]:
    """The detector in this process: PyTorch in float32, with the server's own steps around it as plain functions."""
    import torch

    from builder.checkpoint import load_detector

    detector = load_detector(golden_config, checkpoint)

    def detect(data: bytes) -> tuple[Any, Any, Any]:
        prepared = preprocess(data, HEIGHT, WIDTH)
        with torch.inference_mode():
            candidates = detector(torch.from_numpy(prepared.images)[None], torch.tensor([prepared.image_size]))
        boxes, scores, labels = (tensor[0].numpy() for tensor in candidates)
        found = postprocess(
            boxes,
            scores,
            labels.astype(np.int32),
            prepared.original_size,
            PostprocessSettings.of(detector.variant.rules.suppression, len(boxes)),
        )
        count = found.num_detections
        return found.boxes[:count], found.scores[:count], found.labels[:count]

    return detect


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[CoDetrClient]:
    url = server.grpc_url if request.param == "grpc" else server.http_url
    with CoDetrClient(url, request.param, timeout=60) as connected:
        yield connected


def assert_same(found: Detections, boxes: Any, scores: Any, labels: Any, side: float) -> None:
    """Compare detections one to one; where scores lie within the tolerance their order may differ."""
    assert len(found) == len(scores) > 0
    left = set(range(len(scores)))
    for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True):
        near = [i for i in left if labels[i] == label and abs(scores[i] - score) <= TOLERANCE * max(score, 1e-2)]
        distances = {i: float(np.abs(boxes[i] - box).max()) / side for i in near}
        assert distances, f"no detection of label {label} and score {score}"
        best = min(distances, key=distances.__getitem__)
        assert distances[best] <= TOLERANCE
        left.remove(best)


@pytest.mark.parametrize("name", IMAGES)
def test_the_server_finds_what_the_detector_finds(
    client: CoDetrClient, detect_here: Callable[[bytes], tuple[Any, Any, Any]], name: str
) -> None:
    data = IMAGES[name]()
    boxes, scores, labels = detect_here(data)
    height, width = preprocess(data, HEIGHT, WIDTH).original_size
    assert_same(client.detect(data), boxes, scores, labels, max(height, width))


def test_turned_pictures_have_their_boxes_in_upright_pixels(client: CoDetrClient) -> None:
    upright = client.detect(turned(1))
    assert upright.boxes[:, 2].max() > 120
    assert client.detect(turned(6)).boxes[:, 2].max() <= 120


def test_a_batch_of_five_sizes_equals_five_requests(client: CoDetrClient) -> None:
    sizes = [(64, 48), (48, 64), (200, 100), (640, 480), (9, 300)]
    pictures = [encoded_picture(*size, seed=index) for index, size in enumerate(sizes)]
    batch = client.detect_batch(pictures)
    for found, data, size in zip(batch, pictures, sizes, strict=True):
        single = client.detect(data)
        assert_same(found, single.boxes, single.scores, single.labels, max(size))


def test_pixels_and_pillow_images_give_the_same_as_their_file(client: CoDetrClient, tmp_path: Path) -> None:
    pixels = picture(120, 80)
    expected = client.detect(saved(Image.fromarray(pixels), "PNG"))
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    for given in (pixels, Image.fromarray(pixels), tmp_path / "picture.png", str(tmp_path / "picture.png")):
        found = client.detect(given)
        assert np.array_equal(found.boxes, expected.boxes)
        assert np.array_equal(found.scores, expected.scores)


def test_a_threshold_for_one_request(client: CoDetrClient) -> None:
    data = encoded_picture(200, 150)
    everything = client.detect(data)
    threshold = float(np.median(everything.scores))
    fewer = client.detect(data, score_threshold=threshold)
    assert 0 < len(fewer) < len(everything)
    assert fewer.scores.min() >= threshold
    assert len(client.detect(data)) == len(everything), "the next request has the server's threshold again"


@pytest.mark.parametrize("threshold", [-0.5, 1.5, float("nan")])
def test_an_impossible_threshold_is_refused_by_name(client: CoDetrClient, threshold: float) -> None:
    with pytest.raises(RequestRefusedError, match="score_threshold"):
        client.detect(encoded_picture(20, 20), score_threshold=threshold)


def test_class_names_come_from_the_server(client: CoDetrClient, golden_config: dict[str, Any]) -> None:
    names = client.class_names()
    assert names
    found = client.detect(encoded_picture(200, 150))
    assert found.names == tuple(names[label] for label in found.labels)


def oversized_png() -> bytes:
    """A PNG whose header claims 60000 x 60000 pixels: 10.8 GB if somebody believed it."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")):
        png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png


BAD_IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"this is not an image", "expected a JPEG, PNG, WEBP, BMP image"),
    "truncated JPEG": (lambda: encoded_picture(200, 150)[:3000], "damaged JPEG"),
    "PNG of 60000x60000": (oversized_png, "60000x60000"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_a_clear_error(client: CoDetrClient, name: str) -> None:
    make, fault = BAD_IMAGES[name]
    with pytest.raises(RequestRefusedError, match=fault) as caught:
        client.detect(make())
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    client.check()


def test_a_bad_image_in_a_batch_fails_its_request_and_is_named(client: CoDetrClient) -> None:
    with pytest.raises(RequestRefusedError, match=r"(?i)image 1\b"):
        client.detect_batch([encoded_picture(20, 20), b"text", encoded_picture(30, 30)])
    client.check()


def raw_request(protocol: str, server: TritonServer, images: list[bytes], shape: list[int]) -> None:
    library: Any = tritonclient.grpc if protocol == "grpc" else tritonclient.http
    url = server.grpc_url if protocol == "grpc" else server.http_url
    tensor = library.InferInput("image", shape, "BYTES")
    tensor.set_data_from_numpy(np.array(images, dtype=object).reshape(shape))
    connection = library.InferenceServerClient(url)
    try:
        connection.infer("codetr", [tensor])
    finally:
        connection.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize(
    ("images", "shape"),
    [
        pytest.param([], [1, 0], id="zero-byte tensor"),
        pytest.param([b"a", b"b"], [1, 2], id="two images in one slot"),
    ],
)
def test_a_tensor_of_another_shape_is_refused(
    server: TritonServer, protocol: str, images: list[bytes], shape: list[int]
) -> None:
    with pytest.raises(InferenceServerException, match=r"unexpected shape for input 'image'"):
        raw_request(protocol, server, images, shape)
    assert server.is_ready()


def batched(server: TritonServer) -> tuple[int, int]:
    """Return the images and the executions of the pre-processing step so far."""
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as connection:
        stats = connection.get_inference_statistics("codetr_preprocess").model_stats[0]
    return stats.inference_count, stats.execution_count


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_bad_images_do_not_harm_their_neighbours_in_a_batch(server: TritonServer, protocol: Any) -> None:
    good = encoded_picture(1280, 960)  # slow enough to decode that requests queue up and share batches
    bad = [make() for make, _ in BAD_IMAGES.values()]
    images = [image for index in range(len(bad) * 3) for image in (good, good, bad[index % len(bad)])]
    url = server.grpc_url if protocol == "grpc" else server.http_url

    async def run() -> list[Any]:
        async with AsyncCoDetrClient(url, protocol, timeout=120) as client:
            return await asyncio.gather(*(client.detect(image) for image in images), return_exceptions=True)

    before = batched(server)
    results = asyncio.run(run())
    after = batched(server)
    assert after[1] - before[1] < after[0] - before[0], "some requests shared a batch"
    answered = [result for result, image in zip(results, images, strict=True) if image is good]
    refused = [result for result, image in zip(results, images, strict=True) if image is not good]
    assert all(isinstance(result, RequestRefusedError) for result in refused)
    for result in answered:
        assert isinstance(result, Detections), result
        assert np.allclose(result.boxes, answered[0].boxes, atol=TOLERANCE * 1280)
    assert server.is_ready()


def test_a_wrong_model_name_is_a_one_line_error(server: TritonServer) -> None:
    with (
        CoDetrClient(server.grpc_url, model="other") as client,
        pytest.raises(ModelNotFoundError, match="no model 'other'"),
    ):
        client.detect(encoded_picture(20, 20))


def run_program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_the_simplest_client_runs(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_bytes(encoded_picture(320, 240))
    done = run_program(str(ROOT / "examples/simplest.py"), str(tmp_path / "picture.jpg"), server.grpc_url)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_codetr_detect_writes_pictures_and_reports_the_bad_one(
    server: TritonServer, tmp_path: Path, protocol: str
) -> None:
    (tmp_path / "good.jpg").write_bytes(encoded_picture(320, 240))
    (tmp_path / "bad.jpg").write_bytes(b"text")
    url = server.grpc_url if protocol == "grpc" else server.http_url
    done = run_program(
        "-c", "from codetr.cli import main; main()", "detect", str(tmp_path), "--output", str(tmp_path / "out"),
        "--url", url, "--protocol", protocol, "--score-threshold", "0.01",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: 1 of 2 images failed: bad.jpg: ")
    with Image.open(tmp_path / "out" / "good.jpg") as drawn:
        assert drawn.size == (320, 240)
