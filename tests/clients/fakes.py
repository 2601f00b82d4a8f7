"""Servers of the tests' own process: a Triton that answers as it is told, and ones that misbehave on plain sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

# Triton's statuses over HTTP
STATUS = {
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
}
DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int32): "INT32"}


@dataclass(frozen=True)
class Refusal:
    """An answer of the server's that is an error, in gRPC's words."""

    code: str
    message: str


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    headers: dict[str, str]
    path: str = ""
    images: tuple[bytes, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    peer: str = ""  # whose connection it came over


def tensors(images: int, rows: int = 4) -> dict[str, np.ndarray]:
    """One detection (label 1) in the first image, two in the second, and so on."""
    boxes = np.zeros((images, rows, 4), np.float32)
    scores = np.zeros((images, rows), np.float32)
    labels = np.full((images, rows), -1, np.int32)
    counts = np.arange(1, images + 1, dtype=np.int32)[:, None]
    for image in range(images):
        boxes[image, : image + 1] = [1, 2, 30, 40]
        scores[image, : image + 1] = 0.5
        labels[image, : image + 1] = [1, *([7] * image)]
    return {"boxes": boxes, "scores": scores, "labels": labels, "num_detections": counts}


class FakeTriton:
    """What a Triton with one model `codetr` answers, on both protocols; `script` is what the next requests get."""

    def __init__(self) -> None:
        self.script: list[Refusal | Callable[[], Any]] = []
        self.config: Refusal | str = '["cat", "dog"]'
        self.version = ""  # that answers
        self.configs: dict[str, Refusal | str] = {}  # of versions; of others `config`
        self.ready = True
        self.seen: list[Seen] = []
        self.config_calls = 0
        self.ensembles = {"codetr"}
        self.names: Refusal | list[str] = ["codetr_detector", "codetr", "codetr"]  # a row for each version
        self.seen_statistics: list[dict[str, str]] = []

    def metadata(self, name: str) -> dict[str, Any]:
        """Those of the contract for the names in `ensembles`, of something else for others."""
        outputs = ("boxes", "scores", "labels", "num_detections") if name in self.ensembles else ("boxes",)
        return {
            "name": name,
            "inputs": [{"name": "image", "datatype": "BYTES"}],
            "outputs": [{"name": output, "datatype": "FP32"} for output in outputs],
        }

    def statistics(self, headers: dict[str, str]) -> Refusal | list[str]:
        self.seen_statistics.append(headers)
        return self.names

    def infer(self, seen: Seen) -> Refusal | dict[str, np.ndarray]:
        self.seen.append(seen)
        if not self.script:
            return tensors(len(seen.images))
        step = self.script.pop(0)
        return step if isinstance(step, Refusal) else step()

    def model_config(self, version: str = "") -> Any:
        self.config_calls += 1
        config = self.configs.get(version, self.config)
        if isinstance(config, Refusal):
            return config
        return {"name": "codetr", "parameters": {"class_names": {"string_value": config}}}


def payloads(content: bytes) -> tuple[bytes, ...]:
    found = []
    while content:
        (size,) = struct.unpack("<I", content[:4])
        found.append(content[4 : 4 + size])
        content = content[4 + size :]
    return tuple(found)


# ---- gRPC


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, triton: FakeTriton) -> None:
        self.triton = triton

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802  # the protocol's name
        parameters = {
            name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in request.parameters.items()
        }
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        images = payloads(request.raw_input_contents[0])
        answer = self.triton.infer(Seen(headers, "", images, parameters, context.peer()))
        self._refuse(answer, context)
        message = service_pb2.ModelInferResponse(model_name="codetr", model_version=self.triton.version)
        for name, array in answer.items():
            message.outputs.add(name=name, datatype=DATATYPES[array.dtype], shape=array.shape)
            message.raw_output_contents.append(array.tobytes())
        return message

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=self.triton.ready)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        message = service_pb2.ModelMetadataResponse(name=request.name)
        metadata = self.triton.metadata(request.name)
        for key in ("inputs", "outputs"):
            for tensor in metadata[key]:
                getattr(message, key).add(**tensor)
        return message

    def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        names = self.triton.statistics({key: str(value) for key, value in context.invocation_metadata()})
        self._refuse(names, context)
        message = service_pb2.ModelStatisticsResponse()
        for name in names:
            message.model_stats.add(name=name)
        return message

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        config = self.triton.model_config(request.version)
        self._refuse(config, context)
        answer = service_pb2.ModelConfigResponse()
        answer.config.parameters["class_names"].string_value = config["parameters"]["class_names"]["string_value"]
        return answer

    def _refuse(self, answer: Any, context: Any) -> None:
        if isinstance(answer, Refusal):
            context.abort(grpc.StatusCode[answer.code], answer.message)


@contextlib.contextmanager
def grpc_server(triton: FakeTriton, credentials: Any = None, port: int = 0, max_bytes: int = -1) -> Iterator[int]:
    # Triton's takes what protobuf can hold
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", max_bytes)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(triton), server)
    address = f"127.0.0.1:{port}"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


# ---- HTTP


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    triton: FakeTriton
    prefix = ""

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:  # the base class's name
        path = self.path.removeprefix(self.prefix)
        if path.endswith("/ready"):
            self.answer(200 if self.triton.ready else 400, b"")
        elif path.endswith("/config"):
            asked = path.removesuffix("/config").partition("/versions/")[2]
            self.answer_json(self.triton.model_config(asked))
        elif path.endswith("/stats"):
            names = self.triton.statistics({name.lower(): value for name, value in self.headers.items()})
            refused = isinstance(names, Refusal)
            self.answer_json(names if refused else {"model_stats": [{"name": name} for name in names]})
        else:
            self.answer_json(self.triton.metadata(path.rsplit("/", 1)[-1]))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        head = int(self.headers["inference-header-content-length"])
        document = json.loads(body[:head])
        headers = {name.lower(): value for name, value in self.headers.items()}
        peer = str(self.client_address)
        answer = self.triton.infer(Seen(headers, self.path, payloads(body[head:]), document["parameters"], peer))
        if isinstance(answer, Refusal):
            self.answer_json(answer)
            return
        content, head = infer_body(answer, self.triton.version)
        self.answer(200, content, head)

    def answer_json(self, document: Any) -> None:
        if isinstance(document, Refusal):
            self.answer(STATUS[document.code], json.dumps({"error": document.message}).encode())
        else:
            self.answer(200, json.dumps(document).encode())

    def answer(self, status: int, content: bytes, head: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if head is not None:
            self.send_header("Inference-Header-Content-Length", str(head))
        self.end_headers()
        self.wfile.write(content)


def infer_body(answer: dict[str, np.ndarray], version: str = "") -> tuple[bytes, int]:
    outputs = [
        {
            "name": name,
            "datatype": DATATYPES[array.dtype],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in answer.items()
    ]
    document = json.dumps({"model_name": "codetr", "model_version": version, "outputs": outputs}).encode()
    return document + b"".join(array.tobytes() for array in answer.values()), len(document)


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *arguments: object) -> None:
        pass  # clients leave on purpose


@contextlib.contextmanager
def http_server(
    triton: FakeTriton, context: ssl.SSLContext | None = None, prefix: str = "", port: int = 0
) -> Iterator[int]:
    handler = type("Bound", (Handler,), {"triton": triton, "prefix": prefix})
    with QuietServer(("127.0.0.1", port), handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


# ---- plain sockets


@contextlib.contextmanager
def raw_server(handle: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Let `handle` deal with each connection in a thread of its own; yield the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            if context is not None:
                connection = stack.enter_context(context.wrap_socket(connection, server_side=True))
            handle(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def read_request(connection: socket.socket) -> bytes:
    """Read one HTTP request."""
    content = b""
    while b"\r\n\r\n" not in content:
        more = connection.recv(65536)
        if not more:
            return content
        content += more
    head, _, body = content.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            while len(body) < int(line.split(b":")[1]):
                body += connection.recv(65536)
    return head


def answers(content: bytes) -> Callable[[socket.socket], None]:
    """Answer every request of a connection with these bytes, then close."""

    def handle(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(content)

    return handle


def drips(content: bytes) -> Callable[[socket.socket], None]:
    """Answer a byte at a time, for longer than any test waits."""

    def handle(connection: socket.socket) -> None:
        read_request(connection)
        for byte in content:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)

    return handle


def says_nothing(connection: socket.socket) -> None:
    """Accept and wait until the other side leaves."""
    while connection.recv(65536):
        pass


def hangs_up(connection: socket.socket) -> None:
    """Close without an answer, once something was said."""
    connection.recv(16)


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """Yield a port that takes no connection and refuses none: its queue is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


# ---- certificates


@dataclass(frozen=True)
class Certificates:
    """Files of a CA made for the tests, of a server and a client that it signed, and of another CA."""

    folder: Path

    def __getattr__(self, name: str) -> str:
        return str(self.folder / name.replace("_", "."))

    def server_context(self, wants_client: bool = False, name: str = "server") -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        context.set_alpn_protocols(["http/1.1"])
        if wants_client:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca_pem)
        return context

    def server_credentials(self, wants_client: bool = False, name: str = "server") -> Any:
        pair = ((self.folder / f"{name}.key").read_bytes(), (self.folder / f"{name}.pem").read_bytes())
        if not wants_client:
            return grpc.ssl_server_credentials([pair])
        return grpc.ssl_server_credentials([pair], Path(self.ca_pem).read_bytes(), require_client_auth=True)


def make_certificates(folder: Path) -> Certificates:
    """Make the files with openssl."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    def signed(name: str, ca: str, extension: str, dates: Sequence[str] = ("-days", "30")) -> None:
        (folder / f"{name}.ext").write_text(extension)
        request = ("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        openssl(*request, "-subj", f"/CN={name}")
        sign = ("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-CAcreateserial")
        openssl(*sign, "-out", f"{name}.pem", "-extfile", f"{name}.ext", *dates)

    for ca in ("ca", "other"):
        make = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{ca}.key", "-out", f"{ca}.pem")
        openssl(*make, "-days", "30", "-subj", f"/CN=tests {ca}")
    signed("server", "ca", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    signed("elsewhere", "ca", "subjectAltName=DNS:detector.example")
    signed("expired", "ca", "subjectAltName=DNS:localhost,IP:127.0.0.1", ("-days", "-1"))
    signed("client", "ca", "extendedKeyUsage=clientAuth")
    signed("stranger", "other", "extendedKeyUsage=clientAuth")
    openssl("rsa", "-aes128", "-passout", "pass:secret", "-in", "client.key", "-out", "locked.key")
    return Certificates(folder)
