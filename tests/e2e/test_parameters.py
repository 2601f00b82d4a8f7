"""Request parameters on a real tritonserver: known ones mean what is written, others are refused before the engine."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException

from serving.contract import ENSEMBLE
from serving.launch import TritonServer
from tests.e2e.conftest import computed, killed_server
from tests.tiny_engine import MAX_DETECTIONS, tiny_candidates

pytestmark = pytest.mark.server

CLIENTS = {"grpc": tritonclient.grpc, "http": tritonclient.http}


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest, both: TritonServer) -> Iterator[Any]:
    url = both.grpc_url if request.param == "grpc" else both.http_url
    with CLIENTS[request.param].InferenceServerClient(url) as client:
        yield client


def white() -> bytes:
    """An image whose scores are the powers of 0.9."""
    buffer = BytesIO()
    Image.new("RGB", (40, 40), "white").save(buffer, "PNG")
    return buffer.getvalue()


def count(client: Any, data: bytes | None = None, **options: Any) -> int:
    """Return the number of detections."""
    module = tritonclient.grpc if isinstance(client, tritonclient.grpc.InferenceServerClient) else tritonclient.http
    tensor = module.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[white() if data is None else data]], np.object_))
    return int(client.infer(ENSEMBLE, [tensor], **options).as_numpy("num_detections")[0, 0])


def test_a_detection_of_just_the_threshold_is_in_the_answer(client: Any) -> None:
    scores = tiny_candidates(1.0)[1]
    for rank, score in enumerate(scores[1:4], 2):
        assert count(client, parameters={"score_threshold": float(score)}) == rank
        above = float(np.nextafter(score, np.float32(1)))
        assert count(client, parameters={"score_threshold": above}) == rank - 1
    # float32(0.9), which is the second score, is below 0.9
    assert scores[1] < 0.9
    assert count(client, parameters={"score_threshold": 0.9}) == 2
    assert count(client, parameters={"score_threshold": 1}) == 1
    assert count(client, parameters={"score_threshold": 0}) == MAX_DETECTIONS


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        pytest.param(
            {"score_treshold": 0.5}, "unknown request parameter 'score_treshold'; expected some of", id="typo"
        ),
        pytest.param({"score_threshold": 0.5, "iou": 0.5}, "unknown request parameter 'iou'", id="not ours"),
        pytest.param({"score_threshold": "0.5"}, "score_threshold: expected a number in 0..1, got '0.5'", id="text"),
        pytest.param({"score_threshold": True}, "score_threshold: expected a number in 0..1, got True", id="truth"),
        pytest.param(
            {"score_threshold": float("nan")}, "score_threshold: expected a number in 0..1, got nan", id="NaN"
        ),
    ],
)
def test_wrong_parameters_are_refused_before_the_engine_runs(
    both: TritonServer, client: Any, parameters: dict[str, Any], message: str
) -> None:
    before = computed(both)
    for data in (white(), b"no image"):
        with pytest.raises(InferenceServerException, match=message) as caught:
            count(client, data, parameters=parameters)
        assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "400")
    assert computed(both) == before
    assert count(client) == MAX_DETECTIONS
    assert computed(both) == before + 1


def test_tritons_own_parameters_are_not_refused(client: Any) -> None:
    assert count(client, priority=1, timeout=5_000_000, request_id="a") == MAX_DETECTIONS
    assert count(client, priority=1, timeout=5_000_000, parameters={"score_threshold": 0.95}) == 1


def test_forwarded_headers_are_not_refused(tiny_repository: Path) -> None:
    forward = ["--http-header-forward-pattern=.*", "--grpc-header-forward-pattern=.*"]
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x-request-id": "7"}
    with killed_server(tiny_repository, forward) as server:
        for module, url in ((tritonclient.grpc, server.grpc_url), (tritonclient.http, server.http_url)):
            with module.InferenceServerClient(url) as client:
                assert count(client, headers=headers, parameters={"score_threshold": 0.95}) == 1
                with pytest.raises(InferenceServerException, match="unknown request parameter 'iou'"):
                    count(client, headers=headers, parameters={"iou": 0.95})
