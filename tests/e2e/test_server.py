"""The ensemble on a real tritonserver as the wire shows it; its engine has known answers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

from codetr_client.aio import AsyncCoDetrClient
from codetr_client.detections import Detections
from codetr_client.errors import RequestRefusedError
from codetr_client.wire import Protocol
from serving.contract import ENSEMBLE, POSTPROCESS, contract
from serving.errors import CodetrError
from serving.launch import TritonServer, free_ports, running_server
from serving.manifest import manifest_path, older_manifest
from tests.tiny_engine import MAX_DETECTIONS, tiny_candidates

pytestmark = pytest.mark.server

CLIENTS = {"grpc": tritonclient.grpc, "http": tritonclient.http}
OUTPUTS = [tensor.name for tensor in contract(1, 1)[ENSEMBLE].outputs]


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, both: TritonServer) -> Iterator[Any]:
    url = both.grpc_url if request.param == "grpc" else both.http_url
    with CLIENTS[request.param].InferenceServerClient(url) as client:
        yield client


def image_input(client: Any, values: Any) -> list[Any]:
    module = tritonclient.grpc if isinstance(client, tritonclient.grpc.InferenceServerClient) else tritonclient.http
    array = np.array(values, np.object_)
    tensor = module.InferInput("image", list(array.shape), "BYTES")
    tensor.set_data_from_numpy(array)
    return [tensor]


def infer(client: Any, *images: bytes, **options: Any) -> dict[str, np.ndarray]:
    result = client.infer(ENSEMBLE, image_input(client, [[image] for image in images]), **options)
    return {name: result.as_numpy(name) for name in OUTPUTS}


def png(width: int, height: int, value: int) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (width, height), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def truncated_jpeg() -> bytes:
    buffer = BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (90, 160, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()[:5000]


def png_bomb() -> bytes:
    data = bytearray(png(1, 1, 0))
    data[16:24] = (60000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def check_answer(outputs: dict[str, np.ndarray], row: int, size: tuple[int, int], value: int) -> None:
    """Compare one image's rows with what the engine's rule says for a (width, height) image of one gray value."""
    boxes, scores, labels = tiny_candidates(value / 255)
    width, height = size
    pixels = np.clip(boxes * [width, height, width, height], 0, [width, height, width, height])
    assert outputs["num_detections"][row] == MAX_DETECTIONS
    np.testing.assert_allclose(outputs["boxes"][row], pixels, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(outputs["scores"][row], scores, rtol=1e-5)
    np.testing.assert_array_equal(outputs["labels"][row], labels)


def test_boxes_are_in_the_images_own_pixels(client: Any) -> None:
    for size in ((200, 100), (100, 200), (8, 8)):
        check_answer(infer(client, png(*size, 51)), 0, size, 51)


def test_several_images_of_different_sizes_in_one_request(client: Any) -> None:
    images = [((200, 100), 51), ((31, 77), 255), ((8, 8), 102)]
    outputs = infer(client, *(png(*size, value) for size, value in images))
    for row, (size, value) in enumerate(images):
        check_answer(outputs, row, size, value)


def test_score_threshold_of_one_request(client: Any) -> None:
    image = png(40, 40, 255)  # scores 1, 0.9, 0.81, ...
    assert infer(client, image, parameters={"score_threshold": 0.8})["num_detections"] == [[3]]
    assert infer(client, image)["num_detections"] == [[MAX_DETECTIONS]]
    with pytest.raises(InferenceServerException, match=r"score_threshold: expected a number in 0..1, got 8"):
        infer(client, image, parameters={"score_threshold": 8})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(b"", r"the image is empty \(0 bytes\)", id="empty"),
        pytest.param(b"no picture at all", "expected a JPEG, PNG, WEBP, BMP image", id="text"),
        pytest.param(truncated_jpeg(), "damaged JPEG image", id="truncated"),
        pytest.param(png_bomb(), "60000x60000 pixels, more than the limit", id="bomb"),
    ],
)
def test_a_bad_image_is_its_requests_clear_error(client: Any, image: bytes, message: str) -> None:
    with pytest.raises(InferenceServerException, match=message) as caught:
        infer(client, image)
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    with pytest.raises(InferenceServerException, match=f"image 1 of 2: .*{message}"):
        infer(client, png(9, 9, 9), image)
    check_answer(infer(client, png(20, 10, 51)), 0, (20, 10), 51)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_neighbours_of_bad_images_are_answered(both: TritonServer, protocol: Protocol) -> None:
    """Many requests at once queue up behind each other, and good and bad ones go through the same processes."""
    bad = (b"", b"text", truncated_jpeg(), png_bomb())
    # large enough that they queue up while others are decoded
    images = [bad[k // 2 % 4] if k % 2 else png(1200 + k, 800, 5 * k + 10) for k in range(48)]
    url = both.grpc_url if protocol == "grpc" else both.http_url

    async def run() -> list[Any]:
        async with AsyncCoDetrClient(url, protocol, timeout=120) as client:
            return await asyncio.gather(*(client.detect(image) for image in images), return_exceptions=True)

    answers = asyncio.run(run())
    for k, answer in enumerate(answers):
        if k % 2:
            assert isinstance(answer, RequestRefusedError), answer
            continue
        assert isinstance(answer, Detections), answer
        rows = {name: getattr(answer, name)[None] for name in ("boxes", "scores", "labels")}
        check_answer(rows | {"num_detections": np.array([[len(answer)]])}, 0, (1200 + k, 800), 5 * k + 10)
    assert both.is_ready()


@pytest.mark.parametrize(
    ("values", "shape", "message"),
    [
        pytest.param([[b"a", b"b"]], None, "unexpected shape for input 'image'", id="two images in the slot of one"),
        pytest.param([[b"a"]] * 5, None, "batch-size must be <= 4", id="more images than a batch holds"),
        pytest.param([], (1, 0), "unexpected shape for input 'image'", id="no image in the slot"),
        pytest.param([], (0, 1), "expected 1 string elements", id="no row"),
    ],
)
def test_wrong_shapes_are_errors(client: Any, values: Any, shape: tuple[int, int] | None, message: str) -> None:
    array = np.array(values, np.object_).reshape(shape) if shape else values
    with pytest.raises(InferenceServerException, match=message):
        client.infer(ENSEMBLE, image_input(client, array))
    check_answer(infer(client, png(20, 10, 51)), 0, (20, 10), 51)


def test_a_tensor_of_zero_bytes_is_an_error(both: TritonServer) -> None:
    with tritonclient.grpc.InferenceServerClient(both.grpc_url) as client:
        (tensor,) = image_input(client, [[b"abc"]])
        tensor._raw_content = b""  # what a faulty client sends: a shape, and no data
        with pytest.raises(InferenceServerException):
            client.infer(ENSEMBLE, [tensor])
        check_answer(infer(client, png(20, 10, 51)), 0, (20, 10), 51)


def test_a_model_that_fails_to_load_is_named_with_the_reason(tiny_repository: Path, tmp_path: Path) -> None:
    broken = copy_of(tiny_repository, tmp_path)
    config = broken / POSTPROCESS / "config.pbtxt"
    config.write_text(config.read_text().replace('"iou_threshold"', '"iou"'))
    expected = "model codetr_postprocess failed to load: .*unknown parameter 'iou'; expected some of score_threshold"
    with pytest.raises(CodetrError, match=expected) as caught, running_server(broken):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("older", [False, True])
def test_a_changed_engine_is_refused(tiny_repository: Path, tmp_path: Path, older: bool) -> None:
    broken = (of_an_older_build if older else copy_of)(tiny_repository, tmp_path)
    with (broken / "codetr_detector" / "1" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CodetrError, match=r"model.onnx is not the file that was built"), running_server(broken):
        pass


def copy_of(repository: Path, folder: Path) -> Path:
    return Path(shutil.copytree(repository, folder / "copy"))


def of_an_older_build(repository: Path, folder: Path) -> Path:
    """The same repository as version 1 wrote it: the manifest in its root, without a schema."""
    older = copy_of(repository, folder)
    manifest = json.loads(manifest_path(older).read_text())
    manifest.pop("schema", None)
    manifest_path(older).unlink()
    (older / older_manifest(ENSEMBLE)).write_text(json.dumps(manifest))
    return older


@pytest.fixture
def served(
    request: pytest.FixtureRequest, tiny_repository: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """`codetr serve` as a user runs it, ready; and its three ports. With "older" on an older build's repository."""
    older = getattr(request, "param", "") == "older"
    repository = of_an_older_build(tiny_repository, tmp_path) if older else tiny_repository
    ports = free_ports(3)
    names = ("--http-port", "--grpc-port", "--metrics-port")
    options = [text for name, port in zip(names, ports, strict=True) for text in (name, str(port))]
    command = [str(Path(sys.executable).parent / "codetr"), "serve", "--repository", str(repository), *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = [process.stderr.readline() for _ in range(2)]
        assert lines[1].startswith(f"ready: HTTP 127.0.0.1:{ports[0]}, gRPC 127.0.0.1:{ports[1]}, metrics"), lines
        yield process, ports
    finally:
        process.terminate()
        process.communicate(timeout=300)


@pytest.mark.parametrize(
    ("served", "number"), [("", signal.SIGINT), ("older", signal.SIGTERM)], indirect=["served"], ids=["", "older"]
)
def test_serve_answers_and_stops_with_the_server_and_its_status(
    served: tuple[subprocess.Popen[str], list[int]], number: signal.Signals
) -> None:
    process, ports = served
    (server,) = psutil.Process(process.pid).children()
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
        check_answer(infer(client, png(20, 10, 51)), 0, (20, 10), 51)
    process.send_signal(number)
    assert process.wait(timeout=300) == 0
    assert not server.is_running()


def test_no_server_outlives_a_killed_parent(served: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, _ = served
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 5  # the server and one process for each instance of a Python model
    os.kill(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not alive


def test_serve_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "codetr"), "serve", "--repository", str(tmp_path / "nowhere")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert result.stderr.startswith("error: no repository at ")
    assert result.stderr.count("\n") == 1
