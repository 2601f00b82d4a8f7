"""Images in, boxes out: a real server gives what the detector gives in this process, for every kind of image."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codetr import cli
from codetr_client.client import CoDetrClient
from codetr_client.detections import Detections
from codetr_client.errors import CodetrError, ModelNotFoundError, RequestRefusedError
from perf import pictures
from perf.pictures import picture
from serving.launch import TritonServer
from serving.postprocess import PostprocessSettings, postprocess
from serving.preprocess import preprocess
from tests.conftest import HEIGHT, WIDTH

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
# Of a box side relative to its image, and of a score; the engine and PyTorch differ by less than a tenth of it.
TOLERANCE = 1e-4
EXIF_ORIENTATION = 0x0112


encoded_picture = cache(pictures.encoded_picture)  # the huge one takes seconds


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


# What is sent, made when it is needed.
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
    **{f"EXIF orientation {value}": partial(turned, value) for value in range(1, 9)},
}


@pytest.fixture(scope="session")
def detect_here(shallow_config: dict[str, Any], checkpoint: Path) -> Callable[[bytes], tuple[Any, Any, Any]]:
    """The detector in this process: PyTorch in float32, with the server's own steps around it as plain functions."""
    import torch

    from builder.checkpoint import load_detector

    detector = load_detector(shallow_config, checkpoint)

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


one_protocol = pytest.mark.parametrize("client", ["grpc"], indirect=True)


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


# Every picture in one of the two protocols: what they differ in is how bytes travel.
@pytest.mark.parametrize(
    ("name", "client"),
    [*((name, "grpc") for name in IMAGES if name != "huge"), ("landscape", "http"), ("huge", "http")],
    indirect=["client"],
)
def test_the_server_finds_what_the_detector_finds(
    client: CoDetrClient, detect_here: Callable[[bytes], tuple[Any, Any, Any]], name: str
) -> None:
    data = IMAGES[name]()
    boxes, scores, labels = detect_here(data)
    height, width = preprocess(data, HEIGHT, WIDTH).original_size
    assert_same(client.detect(data), boxes, scores, labels, max(height, width))


@one_protocol
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


@one_protocol
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
    for impossible in (-0.5, 1.5, float("nan")):
        with pytest.raises(CodetrError, match="score_threshold"):
            client.detect(data, score_threshold=impossible)


def test_class_names_come_from_the_server(client: CoDetrClient) -> None:
    names = client.class_names()
    assert names
    found = client.detect(encoded_picture(200, 150))
    assert found.names == tuple(names[label] for label in found.labels)


def test_a_bad_image_is_one_line_and_named_in_a_batch(client: CoDetrClient) -> None:
    """The kinds of bad images, and what their neighbours get, are in test_server.py."""
    with pytest.raises(RequestRefusedError, match="damaged JPEG") as caught:
        client.detect(encoded_picture(200, 150)[:3000])
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(RequestRefusedError, match=r"(?i)image 1\b"):
        client.detect_batch([encoded_picture(20, 20), b"text", encoded_picture(30, 30)])
    client.check()


def test_a_wrong_model_name_is_a_one_line_error(server: TritonServer) -> None:
    with (
        CoDetrClient(server.grpc_url, model="other") as client,
        pytest.raises(ModelNotFoundError, match="no model 'other'"),
    ):
        client.detect(encoded_picture(20, 20))


def test_the_simplest_client_runs(server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_bytes(encoded_picture(320, 240))
    command = [sys.executable, str(ROOT / "examples/simplest.py"), str(tmp_path / "picture.jpg"), server.grpc_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_codetr_detect_writes_pictures_and_reports_the_bad_one(
    server: TritonServer,
    tmp_path: Path,
    protocol: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "good.jpg").write_bytes(encoded_picture(320, 240))
    (tmp_path / "bad.jpg").write_bytes(b"text")
    url = server.grpc_url if protocol == "grpc" else server.http_url
    options = ["--output", str(tmp_path / "out"), "--url", url, "--protocol", protocol, "--score-threshold", "0.01"]
    monkeypatch.setattr(sys, "argv", ["codetr", "detect", str(tmp_path), *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: 1 of 2 images failed: bad.jpg: ")
    with Image.open(tmp_path / "out" / "good.jpg") as drawn:
        assert drawn.size == (320, 240)
