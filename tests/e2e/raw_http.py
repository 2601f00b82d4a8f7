"""HTTP as no client library would send it, and the requests of an inference in parts that can be spoilt."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

from serving.launch import TritonServer

INFER = "/v2/models/codetr/infer"


def exchange(server: TritonServer, *request: bytes, seconds: float = 20, is_all: bool = False) -> tuple[int, bytes]:
    """Send bytes and return the status and the body of what comes back; status 0 where the server hangs up.

    Pieces of a request are sent one by one, so that the server reads them so. `is_all` tells it that nothing follows:
    it need not wait for what a header promised.
    """
    with socket.create_connection(("127.0.0.1", server.options.http_port), timeout=seconds) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        received = b""
        try:
            for number, piece in enumerate(request):
                time.sleep(0.02 if number else 0)
                connection.sendall(piece)
            if is_all:
                connection.shutdown(socket.SHUT_WR)
            while not _is_whole(received) and (part := connection.recv(1 << 16)):
                received += part
        except OSError as error:  # it hung up in the middle of the request
            if isinstance(error, TimeoutError):
                raise
    head, _, body = received.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    return (int(words[1]) if len(words) > 1 and words[1].isdigit() else 0), body


def _is_whole(received: bytes) -> bool:
    head, separator, body = received.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return bool(separator) and bool(lengths) and len(body) >= int(lengths[0])


def tensor(*images: bytes) -> bytes:
    """Return images as the bytes of a BYTES tensor: each behind its length."""
    return b"".join(struct.pack("<I", len(image)) + image for image in images)


def image_input(content: bytes, **changes: Any) -> dict[str, Any]:
    """Return the JSON of the input `image`, whose bytes follow behind the JSON; None removes a key."""
    whole = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(content)}}
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def infer(
    header: Any,
    data: bytes = b"",
    *,
    path: str = INFER,
    header_length: object = "true",
    length: object = "true",
    headers: Sequence[str] = (),
) -> bytes:
    """Return a request of an inference: `header` is JSON, or bytes in its place; lengths are true, None, or lies."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost"]
    if length is not None:
        lines.append(f"Content-Length: {len(text) + len(data) if length == 'true' else length}")
    if header_length is not None:
        lines.append(f"Inference-Header-Content-Length: {len(text) if header_length == 'true' else header_length}")
    return "\r\n".join([*lines, *headers, "", ""]).encode() + text + data


def chunks(parts: Sequence[bytes], header_length: int) -> bytes:
    """Return the same in chunks (RFC 9112, section 7.1)."""
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        f"Inference-Header-Content-Length: {header_length}\r\n\r\n"
    )
    return head.encode() + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def get(path: str) -> bytes:
    """Return a request that only reads."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1")


def post(path: str, content: Any) -> bytes:
    """Return a request with a JSON body."""
    body = json.dumps(content).encode()
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
