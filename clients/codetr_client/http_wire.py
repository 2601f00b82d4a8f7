"""KServe's HTTP protocol with Triton's binary extension: requests as bytes, answers from bytes. Nothing here waits."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from codetr_client.errors import ServerAnswerError
from codetr_client.wire import DTYPES, MAX_ANSWER_BYTES, Ask, Endpoint, Tensors, tensor_from_bytes

MAX_HEAD_BYTES = 64 << 10
HEADER_LENGTH = "inference-header-content-length"
# Paths after the prefix; `{}` is the model.
PATHS = {
    "infer": "/v2/models/{}/infer",
    "ready": "/v2/models/{}/ready",
    "metadata": "/v2/models/{}",
    "config": "/v2/models/{}/config",
    "statistics": "/v2/models/stats",
}


@dataclass(frozen=True)
class Response:
    """An HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection can carry another request."""
        return self.headers.get("connection", "").lower() != "close"


class NotHttpError(Exception):
    """The other side's first bytes are no HTTP/1 answer."""

    def __init__(self, first: bytes) -> None:
        super().__init__("not HTTP/1")
        self.first = first


class BrokenOffError(Exception):
    """The connection ended within an answer; the message says where."""


def request(endpoint: Endpoint, ask: Ask, headers: Mapping[str, str]) -> Iterator[bytes]:
    """Yield the pieces of one HTTP request."""
    path = endpoint.prefix + PATHS[ask.what].format(quote(ask.model, safe=""))
    own = {"host": endpoint.authority, "user-agent": "codetr-client", "accept": "*/*"}
    if ask.what != "infer":
        yield _head("GET", path, {**own, **endpoint.options.headers, **headers})
        return
    document = _infer_document(ask)
    size = sum(len(payload) + 4 for payload in ask.payloads)
    own |= {
        "content-type": "application/octet-stream",
        "content-length": str(len(document) + size),
        HEADER_LENGTH: str(len(document)),
    }
    yield _head("POST", path, {**own, **endpoint.options.headers, **headers}) + document
    for payload in ask.payloads:
        yield struct.pack("<I", len(payload))
        yield payload


def _head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def _infer_document(ask: Ask) -> bytes:
    size = sum(len(payload) + 4 for payload in ask.payloads)
    image = {
        "name": "image",
        "shape": [len(ask.payloads), 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": size},
    }
    return json.dumps({"inputs": [image], "parameters": {"binary_data_output": True, **ask.parameters}}).encode()


class ResponseReader:
    """Puts one answer together from the bytes that come, however they are cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[int, dict[str, str]] | None = None
        self._body = bytearray()
        self._chunked = False
        self._length: int | None = None
        self._chunk_left: int | None = None
        self._done = False
        self.has_begun = False  # whether a byte has come

    def feed(self, content: bytes) -> Response | None:
        """Take the next bytes, b"" for the connection's end; return the answer once it is whole.

        Raises NotHttpError, BrokenOffError, or ServerAnswerError for an answer that is no valid HTTP or too large.
        """
        self._buffer += content
        self.has_begun = self.has_begun or bool(content)
        if self._head is None and not self._read_head():
            if not content:
                raise BrokenOffError("before its headers ended" if self._buffer else "without an answer")
            return None
        self._read_body()
        if not content and not self._done:
            if self._chunked or self._length is not None:
                of = "" if self._length is None else f" of {self._length}"
                raise BrokenOffError(f"after {len(self._body)}{of} bytes of the answer")
            self._done = True  # an answer without a length ends with its connection
        if len(self._body) > MAX_ANSWER_BYTES:
            raise ServerAnswerError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
        if not self._done or self._head is None:
            return None
        status, headers = self._head
        if (not self._chunked and self._length is None) or self._buffer:
            headers["connection"] = "close"  # its end is that of the connection, or something follows it
        return Response(status, headers, bytes(self._body))

    def _read_head(self) -> bool:
        start = bytes(self._buffer[:5])
        if not b"HTTP/".startswith(start) and start != b"HTTP/":
            raise NotHttpError(bytes(self._buffer[:64]))
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            lines = self._buffer[:end].decode("latin-1").split("\r\n")
            del self._buffer[: end + 4]
            found = re.fullmatch(r"HTTP/1\.([01]) (\d{3})( .*)?", lines[0])
            if not found:
                raise ServerAnswerError(f"the answer begins with {lines[0][:80]!r}, which is no status of HTTP/1")
            status = int(found[2])
            if 100 <= status < 200 and status != 101:
                continue  # "go on" and hints come before the answer itself
            headers = _headers(lines[1:])
            if found[1] == "0":
                headers.setdefault("connection", "close")
            self._begin_body(status, headers)
            return True
        if len(self._buffer) > MAX_HEAD_BYTES:
            raise ServerAnswerError(f"the answer's headers have more than {MAX_HEAD_BYTES} bytes")
        return False

    def _begin_body(self, status: int, headers: dict[str, str]) -> None:
        self._head = (status, headers)
        encoding = headers.get("transfer-encoding", "").lower()
        if encoding not in ("", "identity", "chunked"):
            raise ServerAnswerError(f"the answer's transfer encoding is {encoding[:40]!r}; expected none or chunked")
        self._chunked = encoding == "chunked"
        length = headers.get("content-length")
        if status in (204, 304):
            self._chunked, self._length = False, 0
        elif not self._chunked and length is not None:
            if not re.fullmatch(r"[0-9]{1,18}", length):
                raise ServerAnswerError(f"the answer's content-length is {length[:40]!r}; expected a number")
            self._length = int(length)
            if self._length > MAX_ANSWER_BYTES:
                raise ServerAnswerError(f"the answer has {self._length} bytes; expected at most {MAX_ANSWER_BYTES}")

    def _read_body(self) -> None:
        if self._chunked:
            self._read_chunks()
            return
        wanted = len(self._buffer) if self._length is None else self._length - len(self._body)
        self._body += self._buffer[:wanted]
        del self._buffer[:wanted]
        self._done = self._length is not None and len(self._body) == self._length

    def _read_chunks(self) -> None:
        while not self._done:
            if self._chunk_left is None:
                size, found, _ = self._buffer.partition(b"\r\n")
                if not found:
                    if len(self._buffer) > MAX_HEAD_BYTES:
                        raise ServerAnswerError("the answer's chunk has a length without an end")
                    return
                digits = bytes(size).split(b";")[0].strip()
                if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", digits):
                    raise ServerAnswerError(f"the answer's chunk length is {digits[:20]!r}; expected a number")
                if int(digits, 16) == 0:
                    end = self._buffer.find(b"\r\n\r\n", len(size))  # after trailers, of which there are usually none
                    if end < 0:
                        return
                    del self._buffer[: end + 4]
                    self._done = True
                    return
                del self._buffer[: len(size) + 2]
                self._chunk_left = int(digits, 16)
            if len(self._body) + self._chunk_left > MAX_ANSWER_BYTES:
                raise ServerAnswerError(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
            if len(self._buffer) < self._chunk_left + 2:
                return
            if self._buffer[self._chunk_left : self._chunk_left + 2] != b"\r\n":
                raise ServerAnswerError("the answer's chunk does not end where its length says")
            self._body += self._buffer[: self._chunk_left]
            del self._buffer[: self._chunk_left + 2]
            self._chunk_left = None


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, found, value = line.partition(":")
        if not found:
            raise ServerAnswerError(f"the answer has a line {line[:80]!r} among its headers")
        name, value = name.strip().lower(), value.strip()
        if name == "content-length" and headers.get(name, value) != value:
            raise ServerAnswerError("the answer has two lengths")
        headers[name] = value
    return headers


def read(ask: Ask, response: Response) -> Any:
    """Return what a good answer says: tensors of "infer", True of "ready", a dictionary else.

    Raises ServerAnswerError for content that is none of Triton's.
    """
    if ask.what == "ready":
        return True
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise ServerAnswerError(f"the answer is compressed ({encoding[:40]}), which was not asked for")
    if ask.what != "infer":
        return _document(response.body, response)
    length = response.headers.get(HEADER_LENGTH, str(len(response.body)))
    if not re.fullmatch(r"[0-9]{1,18}", length) or int(length) > len(response.body):
        raise ServerAnswerError(f"the answer's {HEADER_LENGTH} is {length[:40]!r}, its body {len(response.body)} bytes")
    document = _document(response.body[: int(length)], response)
    try:
        return _tensors(document, response.body[int(length) :])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ServerAnswerError("the answer's JSON has no outputs as KServe describes them") from error


def _document(body: bytes, response: Response) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        kind = response.headers.get("content-type", "no content type")
        raise ServerAnswerError(
            f"the answer is not JSON but {len(body)} bytes of {kind[:60]}; is it a proxy's, another service's, or that "
            "of Triton's metrics page?"
        ) from error
    if not isinstance(document, dict):
        raise ServerAnswerError(f"the answer is a JSON {type(document).__name__}; expected an object")
    return document


def _tensors(document: Mapping[str, Any], binary: bytes) -> Tensors:
    tensors, start = {}, 0
    for output in document["outputs"]:
        name, datatype, shape = output["name"], output["datatype"], output["shape"]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:  # a proxy or another server may leave the binary extension out
            content = np.array(output["data"], DTYPES.get(datatype)).tobytes()
        else:
            content = binary[start : start + size]
            start += size
        tensors[name] = tensor_from_bytes(name, datatype, shape, content)
    return tensors
