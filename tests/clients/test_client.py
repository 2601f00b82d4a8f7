from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from codetr_client import contract, errors, wire
from codetr_client.aio import AsyncCoDetrClient
from codetr_client.client import CoDetrClient
from codetr_client.errors import CodetrError, InvalidImageError

# Runs one call of the synchronous client or of its asyncio twin: both must do the same.
Call = Callable[..., Any]


def call_now(method: str, *args: Any, **options: Any) -> Any:
    with CoDetrClient(**options) as client:
        return getattr(client, method)(*args)


def call_awaited(method: str, *args: Any, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncCoDetrClient(**options) as client:
            answer: Awaitable[Any] = getattr(client, method)(*args)
            return await answer

    return asyncio.run(run())


@pytest.fixture(params=[call_now, call_awaited], ids=["sync", "asyncio"])
def call(request: pytest.FixtureRequest) -> Call:
    return request.param


def failure(status: str, message: str) -> InferenceServerException:
    return InferenceServerException(msg=message, status=status)


def test_one_image_becomes_one_request_and_padding_rows_are_dropped(call: Call, server) -> None:
    found = call("detect", b"jpeg")
    assert found.boxes.tolist() == [[1, 2, 30, 40]]
    assert found.names == ("dog",)
    image = server.requests[0]["inputs"][0]
    assert (image.name(), image.shape(), image.datatype()) == ("image", [1, 1], "BYTES")
    assert image._get_content() == b"\x04\x00\x00\x00jpeg"


def test_a_batch_is_one_request_with_one_answer_an_image(call: Call, server) -> None:
    found = call("detect_batch", [b"a", b"bc"])
    assert [len(detections) for detections in found] == [1, 2]
    assert found[1].names == ("cat", "class 7"), "the server names two classes only"
    assert len(server.requests) == 1
    assert call("detect_batch", []) == []


def test_the_threshold_travels_as_a_request_parameter_and_only_if_given(call: Call, server) -> None:
    call("detect", b"a", 1)
    call("detect", b"a")
    assert server.requests[0]["parameters"] == {"score_threshold": 1.0}
    assert isinstance(server.requests[0]["parameters"]["score_threshold"], float)
    assert server.requests[1]["parameters"] is None


def test_the_timeout_bounds_a_grpc_call(call: Call, server) -> None:
    call("detect", b"a", timeout=3.0)
    assert server.requests[0]["client_timeout"] == 3.0


def test_given_names_are_not_asked_for(call: Call, server) -> None:
    assert call("detect", b"a", class_names=["x", "y"]).names == ("y",)
    assert call("detect", b"a", class_names="coco").names == (contract.coco_class_names()[1],)
    assert server.config_calls == 0


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(
            failure("StatusCode.UNAVAILABLE", "This protocol is restricted, expecting header 'x'"), id="as gRPC says it"
        ),
        pytest.param(failure("403", "This API is restricted, expecting header 'x'"), id="as HTTP says it"),
    ],
)
def test_a_restricted_configuration_leaves_numbers_for_names(call: Call, server, refusal: Exception) -> None:
    server.config = refusal
    assert call("detect", b"a").names == ("class 1",)


def test_another_fault_of_the_configuration_is_not_swallowed(call: Call, server) -> None:
    server.config = failure("500", "broken")
    with pytest.raises(errors.ServerFaultError, match="broken"):
        call("detect", b"a")


def test_a_configuration_whose_names_are_not_json_is_an_error(call: Call, server) -> None:
    server.config = {"parameters": {"class_names": {"string_value": "cat, dog"}}}
    with pytest.raises(CodetrError, match="class_names of model 'codetr' is not JSON: 'cat, dog'"):
        call("detect", b"a")


NOT_READY = "Request for unknown model: 'codetr' has no available versions"


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        pytest.param(
            failure("StatusCode.INVALID_ARGUMENT", "[request id: <id_unknown>] no image"),
            errors.RequestRefusedError,
            "^no image$",
            id="bad image over gRPC, without Triton's request id",
        ),
        pytest.param(failure("400", "no image"), errors.RequestRefusedError, "^no image$", id="bad image over HTTP"),
        pytest.param(
            failure("StatusCode.NOT_FOUND", "unknown model"),
            errors.ModelNotFoundError,
            "no model 'codetr' at host:1: unknown model",
            id="wrong model name over gRPC",
        ),
        pytest.param(failure("404", "unknown model"), errors.ModelNotFoundError, "no model", id="and over HTTP"),
        pytest.param(
            failure("StatusCode.NOT_FOUND", NOT_READY), errors.ModelNotReadyError, "is not ready", id="unready model"
        ),
        pytest.param(failure("404", NOT_READY), errors.ModelNotReadyError, "is not ready", id="and over HTTP"),
        pytest.param(
            failure("StatusCode.UNAVAILABLE", "failed to connect to all addresses; last error: UNKNOWN: refused"),
            errors.ServerUnreachableError,
            "no server answers grpc at host:1: refused;",
            id="dead server over gRPC",
        ),
        pytest.param(ConnectionRefusedError("refused"), errors.ServerUnreachableError, "refused", id="and over HTTP"),
        pytest.param(
            failure("StatusCode.DEADLINE_EXCEEDED", "Deadline"),
            errors.ServerTimeoutError,
            "no answer from host:1 within 60 s",
            id="timeout over gRPC",
        ),
        pytest.param(TimeoutError(), errors.ServerTimeoutError, "within 60 s", id="timeout over HTTP"),
        pytest.param(
            failure("StatusCode.UNAVAILABLE", "Exceeds maximum queue size"),
            errors.ServerBusyError,
            "host:1 turned the request away",
            id="full queue, which gRPC reports like a dead server",
        ),
        pytest.param(failure("503", "Request timeout expired"), errors.ServerBusyError, "timeout", id="queue deadline"),
        pytest.param(
            failure("StatusCode.INTERNAL", "the engine failed"),
            errors.ServerFaultError,
            "^the engine failed$",
            id="a fault of the server",
        ),
    ],
)
def test_faults_are_typed_one_line_errors(call: Call, server, raised, expected, message) -> None:
    server.error = raised
    with pytest.raises(expected, match=message) as caught:
        call("detect", b"a", url="host:1")
    assert type(caught.value) is expected
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1, "nothing is retried behind the caller's back"


def test_a_programming_error_stays_what_it_is(call: Call, server) -> None:
    server.error = KeyError("ours")
    with pytest.raises(KeyError):
        call("detect", b"a")


def test_check_tells_an_unready_model(call: Call, server) -> None:
    call("check")
    server.ready = False
    with pytest.raises(errors.ModelNotReadyError, match="not ready"):
        call("check")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"protocol": "rest"}, "protocol 'rest': expected 'grpc' or 'http'", id="unknown protocol"),
        pytest.param({"timeout": 0}, "timeout 0: expected seconds above 0", id="no time at all"),
        pytest.param({"url": "localhost"}, "expected host:port, such as localhost:8001 for grpc", id="no port"),
        pytest.param({"url": "https://h:1"}, "expected host:port", id="a scheme that Triton does not serve"),
    ],
)
def test_wrong_arguments_are_one_line_errors(call: Call, server, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CodetrError, match=message):
        call("detect", b"a", **options)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_an_address_may_have_its_scheme(protocol: Any) -> None:
    assert wire.endpoint(f"{protocol}://host:1/", protocol, 1.0, "codetr").address == "host:1"


def test_an_unreadable_image_fails_before_the_request(call: Call, server, tmp_path) -> None:
    with pytest.raises(InvalidImageError, match="cannot read"):
        call("detect", tmp_path / "missing.jpg")
    with pytest.raises(InvalidImageError, match=r"RGB uint8 \[H, W, 3\], not float32 \[4, 4, 3\]"):
        call("detect", np.zeros((4, 4, 3), np.float32))
    assert not server.requests


def test_one_client_asks_for_the_names_once(server) -> None:
    with CoDetrClient() as client:
        client.detect(b"a")
        client.detect(b"a")
    assert server.config_calls == 1


def test_parallel_calls_of_the_asyncio_client_ask_for_the_names_once(server) -> None:
    async def run() -> None:
        async with AsyncCoDetrClient() as client:
            await asyncio.gather(*(client.detect(b"a") for _ in range(5)))

    asyncio.run(run())
    assert server.config_calls == 1
