"""A real server asked as no client would: over raw HTTP, raw gRPC, and step by step with tensors nobody made.

After every request the server must be the same processes, and answer right over both protocols.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import socket
import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from codetr_client.client import CoDetrClient
from codetr_client.detections import Detections
from perf.fuzz.mutations import blind
from perf.fuzz.outcomes import leak
from perf.fuzz.sandbox import Kept, Limits, judged
from perf.fuzz.server import DIGEST_BYTES, ask, processes, spelled, write_echo_repository
from perf.fuzz.sources import sources
from perf.load.monitor import MemoryMonitor
from serving.contract import DETECTOR, ENSEMBLE, POSTPROCESS, PREPROCESS
from serving.launch import TritonServer
from tests.e2e.conftest import killed_server
from tests.e2e.raw_http import INFER, chunks, exchange, get, image_input, infer, post, tensor

pytestmark = pytest.mark.server

IMAGE = sources()["png"]["colour 2, 8 bit"]
DATA = tensor(IMAGE)
REGION = {"shared_memory_region": "x", "shared_memory_byte_size": 9}
SHARED = "/v2/systemsharedmemory/region"
HEADER = json.dumps({"inputs": [image_input(DATA)]}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Of its own, whose detector spells the digest of what it gets."""
    with killed_server(write_echo_repository(tmp_path_factory.mktemp("echo") / "repository")) as running:
        yield running


@pytest.fixture(scope="module")
def digest() -> str:
    (result,) = judged([Kept("image", IMAGE)], Limits())
    return result.outcome.digest


@pytest.fixture(autouse=True)
def _answers_right_afterwards(server: TritonServer, digest: str) -> Iterator[None]:
    before = processes(server)
    yield
    assert processes(server) == before, server.log()[-3000:]
    for protocol, url in (("grpc", server.grpc_url), ("http", server.http_url)):
        with CoDetrClient(url, protocol, timeout=60) as client:
            assert spelled(client.detect(IMAGE)) == digest


def refusal(body: bytes) -> str:
    """The message of an error, which must be JSON and tell nothing of the server's inside."""
    message = json.loads(body.decode("utf-8", "replace"))["error"]
    assert leak(message) is None, message
    return str(message)


def one(data: bytes = DATA, **changes: Any) -> bytes:
    return infer({"inputs": [image_input(DATA, **changes)]}, data)


def with_parameters(**parameters: Any) -> bytes:
    return infer({"parameters": parameters, "inputs": [image_input(DATA)]}, DATA)


def with_output(**output: Any) -> bytes:
    return infer({"inputs": [image_input(DATA)], "outputs": [output]}, DATA)


def in_json(data: Any) -> bytes:
    return infer({"inputs": [image_input(b"", parameters=None, data=data)]})


def compressed(name: str, body: bytes) -> bytes:
    return infer(b"", body, header_length=len(HEADER), headers=[f"Content-Encoding: {name}"])


# Requests that must be refused with a message.
REFUSED: dict[str, bytes] = {
    "another type": one(datatype="FP32"),
    "an unknown type": one(datatype="BYTE"),
    "a type that is a number": one(datatype=7),
    "a shape that is a text": one(shape="1,1"),
    "negative dims": one(shape=[-1, -1]),
    "huge dims": one(shape=[2**62, 2**62]),
    "dims whose product overflows": one(shape=[2**32, 2**32]),
    "dims that are no whole numbers": one(shape=[1.5, 1]),
    "a thousand dims": one(shape=[1] * 1000),
    "no shape": one(shape=None),
    "five images": infer({"inputs": [image_input(tensor(*[IMAGE] * 5), shape=[5, 1])]}, tensor(*[IMAGE] * 5)),
    "fewer images than the shape says": one(shape=[2, 1]),
    "another input's name": one(name="picture"),
    "no inputs": infer({}),
    "an empty list of inputs": infer({"inputs": []}),
    "inputs that are an object": infer({"inputs": {}}),
    "the input twice": infer({"inputs": [image_input(DATA)] * 2}, DATA * 2),
    "one input more": infer(
        {"inputs": [image_input(DATA), {"name": "more", "shape": [1], "datatype": "INT32", "data": [1]}]}, DATA
    ),
    "a length prefix that is too long": one(struct.pack("<I", len(IMAGE) + 9) + IMAGE),
    "the longest length prefix": one(struct.pack("<I", 2**32 - 1) + IMAGE),
    "a length prefix that is too short": one(struct.pack("<I", 5) + IMAGE),
    "a length prefix of nothing": one(struct.pack("<I", 0) + IMAGE),
    "half a length prefix": one(b"ab", parameters={"binary_data_size": 2}),
    "no bytes": one(b"", parameters={"binary_data_size": 0}),
    "a negative number of bytes": one(parameters={"binary_data_size": -5}),
    "more bytes than there are": one(parameters={"binary_data_size": 2**63 - 1}),
    "fewer bytes than there are": one(parameters={"binary_data_size": len(DATA) - 100}),
    "a text for an image": in_json(["text"]),
    "half a surrogate pair for an image": in_json(["\ud800\0x"]),
    "numbers for an image": in_json([1]),
    "an object for an image": in_json([{"a": 1}]),
    "null for an image": infer(HEADER.replace(b'"parameters"', b'"data": null, "x"'), b""),
    "JSON that ends too early": infer(b'{"inputs":['),
    "JSON that is a list": infer(b"[]"),
    "JSON that is null": infer(b"null"),
    "a number beyond all": infer(b"1e999"),
    "nothing": infer(b""),
    "deep JSON": infer(b'{"inputs":' + b"[" * 1000 + b"]" * 1000 + b"}"),
    "a name that is no UTF-8": infer(HEADER.replace(b"image", b"im\xff\xfege"), DATA),
    "a header longer than the body": infer(HEADER, DATA, header_length=10**9),
    "a header of negative length": infer(HEADER, DATA, header_length=-1),
    "a header length that is a text": infer(HEADER, DATA, header_length="abc"),
    "a header length beyond all": infer(HEADER, DATA, header_length=2**70),
    "a header length of 0": infer(HEADER, DATA, header_length=0),
    "a header that is cut short": infer(HEADER, DATA, header_length=20),
    "no header length": infer(HEADER, DATA, header_length=None),
    "a body longer than it says": infer(HEADER, DATA, length=30),
    "two body lengths": infer(HEADER, DATA, headers=["Content-Length: 3"]),
    "tiny chunks of nothing": chunks([b"x"] * 20000, 5),
    "gzip that is none": compressed("gzip", b"\x1f\x8b" + b"x" * 40),
    "gzip that is cut short": compressed("gzip", gzip.compress(HEADER + DATA)[:-20]),
    "gzip of nothing": compressed("gzip", b""),
    "a gzip bomb": compressed("gzip", gzip.compress(bytes(1 << 24))),
    "a deflate bomb": compressed("deflate", zlib.compress(bytes(1 << 24))),
    "an unknown compression": compressed("br", HEADER + DATA),
    "a model's name that is no UTF-8": infer(HEADER, DATA, path="/v2/models/c%ff%fe/infer"),
    "a model's name with an end": infer(HEADER, DATA, path="/v2/models/codetr%00/infer"),
    "a model's name of 3000 letters": infer(HEADER, DATA, path=f"/v2/models/{'a' * 3000}/infer"),
    "a format in a model's name": infer(HEADER, DATA, path="/v2/models/%25s%25n/infer"),
    "a version that is a text": infer(HEADER, DATA, path="/v2/models/codetr/versions/abc/infer"),
    "a negative version": infer(HEADER, DATA, path="/v2/models/codetr/versions/-5/infer"),
    "a version beyond all": infer(HEADER, DATA, path="/v2/models/codetr/versions/99999999999999999999/infer"),
    "a path out of the models": get("/v2/models/../../../../etc/passwd"),
    "an encoded path out of the models": get("/v2/models/..%2f..%2f..%2fetc%2fpasswd/config"),
    "a path from the root": get("//etc/passwd"),
    "a model from elsewhere": post("/v2/repository/models/..%2f..%2fetc/load", {}),
    "an inference without a body": get(INFER),
    "a method that is none": b"BREW /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "shared memory that is not there": one(b"", parameters=REGION),
    "an output to shared memory that is not there": with_output(name="boxes", parameters=REGION),
    "shared memory of a path": post(f"{SHARED}/x/register", {"key": "/../../etc/passwd", "offset": 0, "byte_size": 9}),
    "shared memory of negative size": post(f"{SHARED}/x/register", {"key": "/x", "offset": -1, "byte_size": -9}),
    "a log file": post("/v2/logging", {"log_file": "a.log"}),
    "a trace file": post("/v2/trace/setting", {"trace_file": "a.trace"}),
    "a negative timeout": with_parameters(timeout=-5),
    "a timeout that is a text": with_parameters(timeout="x"),
    "a threshold that is an object": with_parameters(score_threshold={"a": 1}),
    "a threshold that is a list": with_parameters(score_threshold=[0.5]),
    "a threshold that is null": with_parameters(score_threshold=None),
    "a threshold that is NaN": with_parameters(score_threshold=float("nan")),
    "a threshold that is a text": with_parameters(score_threshold="0.5"),
    "a threshold beyond all": infer(HEADER.replace(b"{", b'{"parameters":{"score_threshold":1e999},', 1), DATA),
    "a parameter that is no UTF-8": infer(HEADER.replace(b"{", b'{"parameters":{"\xff\xfe":"\xff\xc0"},', 1), DATA),
    "a parameter of Triton's own": with_parameters(triton_x=1),
    "an id that is a number": infer({"id": 7, "inputs": [image_input(DATA)]}, DATA),
    "an unknown output": with_output(name="masks"),
    "an output without a name": with_output(),
    "a negative number of classes": with_output(name="scores", parameters={"classification": -1}),
    "a number of classes that is a text": with_output(name="scores", parameters={"classification": "x"}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_refused_with_a_message(server: TritonServer, name: str) -> None:
    status, body = exchange(server, REFUSED[name])
    assert 400 <= status < 600, (status, body[:300])
    assert refusal(body)


# Requests that are unusual and right.
ANSWERED: dict[str, bytes] = {
    "the plain one": infer(HEADER, DATA),
    "in chunks": chunks([HEADER, DATA], len(HEADER)),
    "in gzip": compressed("gzip", gzip.compress(HEADER + DATA)),
    "in deflate": compressed("deflate", zlib.compress(HEADER + DATA)),
    "with a sequence": with_parameters(sequence_id=5, sequence_start=True, sequence_end=False),
    "with a priority": with_parameters(priority=5),
    "with a timeout of nothing": with_parameters(timeout=0),
    "with an id of escapes": infer({"id": "a\nb\x1b[31m", "inputs": [image_input(DATA)]}, DATA),
    "one output twice": infer({"inputs": [image_input(DATA)], "outputs": [{"name": "boxes"}] * 2}, DATA),
    "an output as JSON": with_output(name="boxes", parameters={"binary_data": False}),
    "all outputs binary": with_parameters(binary_data_output=True),
    "the best classes of an output": with_output(name="scores", parameters={"classification": 3}),
    "more classes than there are": with_output(name="scores", parameters={"classification": 2**40}),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_an_unusual_request_is_answered(server: TritonServer, name: str) -> None:
    status, body = exchange(server, ANSWERED[name])
    assert status == 200, body[:300]
    assert b'"model_name":"codetr"' in body


# What is no request of HTTP: the server may hang up or refuse it.
NOISE: dict[str, bytes] = {
    "a negative body length": infer(HEADER, DATA, length=-1),
    "a body length that is a text": infer(HEADER, DATA, length="x"),
    "a chunk length that is none": chunks([], 0).replace(b"0\r\n\r\n", b"ZZ\r\nx\r\n0\r\n\r\n"),
    "a negative chunk length": chunks([], 0).replace(b"0\r\n\r\n", b"-5\r\nx\r\n0\r\n\r\n"),
    "every byte": bytes(range(256)),
    "the hello of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "a request line beyond 4096 bytes": infer(HEADER, DATA, path=f"/v2/models/{'a' * 6000}/infer"),  # of two reads
    "a header of a mebibyte": b"GET /v2 HTTP/1.1\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_hung_up_on(server: TritonServer, name: str) -> None:
    status, _ = exchange(server, NOISE[name])
    assert status == 0 or 400 <= status < 600


@pytest.mark.parametrize("cut", [3, 8, 13, 21, 40])
def test_a_request_line_in_two_pieces_is_at_worst_refused(server: TritonServer, cut: int) -> None:
    """Triton mistakes a path that it reads in two pieces, and hangs up on some; 30 bytes hold the whole path."""
    request = infer(HEADER, DATA)
    status, _ = exchange(server, request[:cut], request[cut:])
    assert status in ((200,) if cut > 30 else (0, 200, 404, 405))


def test_noise_at_the_other_ports(server: TritonServer) -> None:
    for port in (server.options.grpc_port, server.options.metrics_port):
        for noise in (
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 99,
            b"\0" * 99,
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(noise)


def test_connections_that_never_come_to_an_end_hold_nobody_up(server: TritonServer, digest: str) -> None:
    """Half a header, half a body, a body that is said to be longer, and nothing at all; far more than the threads."""
    starts = (b"", infer(HEADER, DATA)[:40], infer(HEADER, DATA)[:-50], infer(HEADER, DATA, length=10**9))
    addresses = [("127.0.0.1", server.options.http_port), ("127.0.0.1", server.options.grpc_port)]
    held = [socket.create_connection(address, timeout=60) for address in addresses for _ in range(40)]
    try:
        for number, connection in enumerate(held):
            connection.sendall(starts[number % len(starts)])
        for connection in held:  # a byte more; some have been hung up on by now
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"x")
        with CoDetrClient(server.http_url, "http", timeout=60) as client:
            assert [spelled(found) for found in client.detect_batch([IMAGE] * 3)] == [digest] * 3
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_images_at_the_limit_of_bytes(server: TritonServer, digest: str, protocol: Any) -> None:
    """64 MiB are an image, one byte more is not; what follows the picture counts. Both in both takes seconds."""
    limit = 64 * 2**20
    with CoDetrClient(server.grpc_url if protocol == "grpc" else server.http_url, protocol, timeout=120) as client:
        assert spelled(client.detect(IMAGE + bytes(limit - len(IMAGE)))) == digest
        if protocol == "grpc":
            return
        with pytest.raises(Exception, match="67108865 bytes, more than the limit of 67108864"):
            client.detect(IMAGE + bytes(limit + 1 - len(IMAGE)))


def message(**changes: Any) -> service_pb2.ModelInferRequest:
    """A whole request of gRPC, with some of its fields changed."""
    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE, raw_input_contents=[DATA])
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    for name, value in changes.items():
        if name in ("name", "datatype"):
            setattr(request.inputs[0], name, value)
        elif name == "shape":
            request.inputs[0].shape[:] = value
        elif name == "raw_input_contents":
            request.raw_input_contents[:] = value
        else:
            setattr(request, name, value)
    return request


def more(change: Any) -> service_pb2.ModelInferRequest:
    request = message()
    change(request)
    return request


def set_string(parameter: Any, value: str) -> None:
    parameter.string_param = value


NAN = float("nan")
MESSAGES: dict[str, service_pb2.ModelInferRequest] = {
    "another type": message(datatype="FP32"),
    "an unknown type": message(datatype="\U0001f600"),
    "negative dims": message(shape=[-1, -1]),
    "huge dims": message(shape=[2**62, 2**62]),
    "no dims": message(shape=[]),
    "a thousand dims": message(shape=[1] * 1000),
    "another input": message(name="picture"),
    "no model": message(model_name=""),
    "a model elsewhere": message(model_name="../../etc/passwd"),
    "a version elsewhere": message(model_version="../1"),
    "a negative version": message(model_version="-3"),
    "no bytes": message(raw_input_contents=[b""]),
    "no tensor": message(raw_input_contents=[]),
    "a length prefix beyond all": message(raw_input_contents=[struct.pack("<I", 2**32 - 1) + IMAGE]),
    "a length prefix that is too short": message(raw_input_contents=[struct.pack("<I", 5) + IMAGE]),
    "half a length prefix": message(raw_input_contents=[b"ab"]),
    "bytes in both places": more(lambda request: request.inputs[0].contents.bytes_contents.append(IMAGE)),
    "the input twice": more(lambda request: request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])),
    "no input": more(lambda request: request.ClearField("inputs")),
    "an unknown output": more(lambda request: request.outputs.add(name="masks")),
    "shared memory": more(lambda request: set_string(request.inputs[0].parameters["shared_memory_region"], "x")),
    "a threshold that is a text": more(lambda request: set_string(request.parameters["score_threshold"], "x")),
    "a threshold of NaN": more(lambda request: setattr(request.parameters["score_threshold"], "double_param", NAN)),
    "a parameter of Triton's own": more(lambda request: set_string(request.parameters["triton_x"], "x")),
}  # fmt: skip


def call(server: TritonServer, content: bytes, method: str = "ModelInfer") -> grpc.RpcError | bytes:
    """Send the bytes of a message to a method, and return the bytes of the answer or the error."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        invoke = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        try:
            return invoke(content, timeout=60)
        except grpc.RpcError as error:
            return error


@pytest.mark.parametrize("name", MESSAGES)
def test_a_wrong_message_is_refused_with_a_message(server: TritonServer, name: str) -> None:
    error = call(server, MESSAGES[name].SerializeToString())
    assert isinstance(error, grpc.RpcError), error
    assert error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert leak(error.details()) is None, error.details()


@pytest.mark.parametrize(
    ("content", "method"),
    [
        pytest.param(b"\xff" * 200, "ModelInfer", id="no message"),
        pytest.param(message().SerializeToString()[:-9], "ModelInfer", id="a message that is cut short"),
        pytest.param(message().SerializeToString().replace(b"codetr", b"co\xff\xfetr"), "ModelInfer", id="no UTF-8"),
        pytest.param(b"", "ModelInfer", id="an empty message"),
        pytest.param(b"", "NoSuchMethod", id="no method"),
        pytest.param(b"\x0a\x03../", "RepositoryModelLoad", id="another model's load"),
    ],
)
def test_bytes_that_are_no_message_are_refused(server: TritonServer, content: bytes, method: str) -> None:
    error = call(server, content, method)
    assert isinstance(error, grpc.RpcError), error
    assert error.code() != grpc.StatusCode.UNAVAILABLE or method == "RepositoryModelLoad"


def numbers(server: TritonServer, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Call one step with tensors."""
    types = {"float32": "FP32", "int32": "INT32", "uint8": "UINT8", "float64": "FP64", "object": "BYTES"}
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        tensors = []
        for name, array in inputs.items():
            tensors.append(tritonclient.grpc.InferInput(name, list(array.shape), types[array.dtype.name]))
            tensors[-1].set_data_from_numpy(array)
        result = client.infer(model, tensors, client_timeout=60)
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def candidates(rows: int = DIGEST_BYTES, **changes: Any) -> dict[str, np.ndarray]:
    whole = {
        "boxes": np.tile(np.array([0, 0, 1, 1], np.float32), (1, rows, 1)),
        "scores": np.full((1, rows), 0.5, np.float32),
        "labels": np.zeros((1, rows), np.int32),
        "original_sizes": np.array([[30, 40]], np.int32),
    }
    return {**whole, **{name: np.full_like(whole[name], value) for name, value in changes.items()}}


def canvas(*size: int, pixels: int = 64) -> dict[str, np.ndarray]:
    return {"images": np.zeros((1, pixels, 96, 3), np.uint8), "image_sizes": np.array([size], np.int32)}


@pytest.mark.parametrize(
    ("model", "inputs", "reason"),
    [
        pytest.param(POSTPROCESS, candidates(original_sizes=0), "original_sizes: .*got 0 and 0", id="no image"),
        pytest.param(
            POSTPROCESS, candidates(original_sizes=-7), "original_sizes: .*got -7 and -7", id="a negative one"
        ),
        pytest.param(POSTPROCESS, candidates(labels=-5), "labels: expected 0 or more, got -5", id="negative labels"),
        pytest.param(POSTPROCESS, candidates(scores=9), "scores: .*got 9", id="scores above 1"),
        pytest.param(POSTPROCESS, candidates(boxes=3e38), "boxes: .*got 3e", id="boxes beyond all"),
        pytest.param(POSTPROCESS, candidates(rows=7), "unexpected shape", id="another K"),
        pytest.param(POSTPROCESS, {name: array[:0] for name, array in candidates().items()}, "0|no image", id="no row"),
        pytest.param(POSTPROCESS, {**candidates(), "labels": candidates()["scores"]}, "data-type", id="another type"),
        pytest.param(POSTPROCESS, {"boxes": candidates()["boxes"]}, "expected 4 inputs", id="one input of four"),
        pytest.param(DETECTOR, canvas(0, 0), "image_sizes: .*got 0 and 0", id="a valid part of nothing"),
        pytest.param(DETECTOR, canvas(-5, 96), "image_sizes: .*got -5 and 96", id="a negative valid part"),
        pytest.param(DETECTOR, canvas(64, 2**31 - 1), "image_sizes: .*got 64 and 2147483647", id="a huge valid part"),
        pytest.param(DETECTOR, canvas(9, 9, pixels=65), "unexpected shape", id="another size of image"),
        pytest.param(PREPROCESS, {"image": np.array([[b""]], np.object_)}, "the image is empty", id="an empty image"),
    ],
)
def test_a_step_refuses_tensors_that_no_step_makes(
    server: TritonServer, model: str, inputs: dict[str, np.ndarray], reason: str
) -> None:
    with pytest.raises(InferenceServerException, match=reason) as caught:
        numbers(server, model, inputs)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert leak(caught.value.message()) is None


def test_candidates_that_are_no_numbers_are_dropped(server: TritonServer) -> None:
    for value in (np.nan, np.inf, -np.inf):
        assert numbers(server, POSTPROCESS, candidates(boxes=value))["num_detections"] == [[0]]
        assert numbers(server, POSTPROCESS, candidates(scores=value))["num_detections"] == [[0]]
    largest = numbers(server, POSTPROCESS, candidates(original_sizes=2**31 - 1))
    assert largest["boxes"].max() == np.float32(2**31 - 1)


def test_neighbours_of_impossible_sizes_are_answered(server: TritonServer, digest: str) -> None:
    def detect(number: int) -> Detections | InferenceServerException:
        if number % 2:
            with pytest.raises(InferenceServerException, match="image_sizes") as caught:
                numbers(server, DETECTOR, canvas(0, number))
            return caught.value
        with CoDetrClient(server.grpc_url, timeout=60) as client:
            return client.detect(IMAGE)

    with ThreadPoolExecutor(16) as pool:
        for found in list(pool.map(detect, range(48)))[::2]:
            assert isinstance(found, Detections)
            assert spelled(found) == digest


@pytest.mark.parametrize("count", [150, pytest.param(4000, marks=pytest.mark.slow)])
def test_mutated_requests_leave_the_server_as_it_is(server: TritonServer, seed: int, count: int) -> None:
    """Of both protocols, the bytes of right and of wrong requests, spoilt blindly. Deep JSON is not among them."""
    chance = random.Random(seed)
    requests = [*ANSWERED.values(), *REFUSED.values()]
    messages = [message().SerializeToString(), *(each.SerializeToString() for each in MESSAGES.values())]
    for _ in range(count):
        spoilt = blind(chance.choice(requests), chance.choice(requests), chance)
        status, body = exchange(server, spoilt, is_all=True)
        assert leak(body.decode("utf-8", "replace") if status >= 400 else "") is None, seed
        answer = call(server, blind(chance.choice(messages), chance.choice(messages), chance))
        assert isinstance(answer, bytes) or leak(answer.details()) is None, seed
    assert server.is_ready(), seed


@pytest.mark.slow
def test_what_is_asked_leaves_no_memory_behind(server: TritonServer) -> None:
    """But for what docs/reliability.md names of Triton 2.51: compressed bodies that are refused, very many chunks."""
    kept = {"a gzip bomb", "a deflate bomb", "tiny chunks of nothing"}
    requests = [request for name, request in {**ANSWERED, **REFUSED}.items() if name not in kept]
    process, resident = psutil.Process(server.process.pid), []
    for _ in range(2):  # pools fill in the first half
        for request in requests * 20:
            exchange(server, request)
        resident.append(process.memory_info().rss)
    assert resident[1] - resident[0] < 4 * 2**20


@pytest.mark.parametrize("count", [240, pytest.param(480, marks=pytest.mark.slow)])
def test_mutated_files_get_the_answers_that_they_get_alone(server: TritonServer, seed: int, count: int) -> None:
    answers = ask(server, count, seed, MemoryMonitor(psutil.Process(server.process.pid)))
    faults = [answer.fault for answer in answers if answer.fault]
    assert not faults, f"codetr bench fuzz --files 0 --requests {count} --seed {seed}: {faults[:3]}"
    assert {"accepted", "refused"} <= {answer.kind for answer in answers}
