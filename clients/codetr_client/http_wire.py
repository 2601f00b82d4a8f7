"""KServe's HTTP protocol with Triton's binary extension: requests as bytes, answers from bytes. Nothing here waits."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import h11
import numpy as np

from codetr_client.errors import ServerAnswerError
from codetr_client.wire import DTYPES, MAX_ANSWER_BYTES, Answer, Ask, Endpoint, Tensors, tensor_from_bytes

# h11's time for a header of blanks that ends with a zero byte grows with its square: 16 KiB took 0.6 s, 32 KiB 3.4 s.
MAX_HEAD_BYTES = 16 << 10
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
    """An HTTP answer; names of headers in lower case.

    keeps_alive: whether the connection can carry another request.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    keeps_alive: bool = False


class NotHttpError(Exception):
    """The other side's first bytes are no HTTP/1 answer."""

    def __init__(self, first: bytes) -> None:
        super().__init__("not HTTP/1")
        self.first = first


class BrokenOffError(Exception):
    """The connection ended within an answer; the message says where."""


def exchange(endpoint: Endpoint, ask: Ask, headers: Mapping[str, str]) -> Exchange:
    """Return what asks one question; `headers` are added to the client's."""
    version = f"/versions/{quote(ask.version, safe='')}" if ask.version else ""
    path = PATHS[ask.what].format(quote(ask.model, safe="") + version)
    headers = {**endpoint.options.headers, **headers}
    if ask.what != "infer":
        return Exchange(endpoint, path, headers)
    document = _infer_document(ask)
    headers |= {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(document))}
    content = [document]
    for payload in ask.payloads:
        content += [struct.pack("<I", len(payload)), payload]
    return Exchange(endpoint, path, headers, content)


def _infer_document(ask: Ask) -> bytes:
    size = sum(len(payload) + 4 for payload in ask.payloads)
    image = {
        "name": "image",
        "shape": [len(ask.payloads), 1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": size},
    }
    return json.dumps({"inputs": [image], "parameters": {"binary_data_output": True, **ask.parameters}}).encode()


class Exchange:
    """One request, and its answer from the bytes that come, however they are cut.

    endpoint: the server; `path` comes after its prefix.
    headers: beside those that every request has.
    content: the pieces of a POST's body; without any the request is a GET.
    """

    def __init__(
        self, endpoint: Endpoint, path: str, headers: Mapping[str, str], content: Sequence[bytes] = ()
    ) -> None:
        self._connection = h11.Connection(h11.CLIENT, MAX_HEAD_BYTES)
        self._content = content
        self._first = b""  # of the answer, enough to see what protocol it is
        self._status = 0  # before it is known
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        own = {"host": endpoint.authority, "user-agent": "codetr-client", "accept": "*/*"}
        if content:
            own["content-length"] = str(sum(len(piece) for piece in content))
        method, target = "POST" if content else "GET", endpoint.prefix + path
        request = h11.Request(method=method, target=target, headers=list({**own, **headers}.items()))
        self._head = self._connection.send(request)

    @property
    def has_begun(self) -> bool:
        """Whether a byte of the answer has come."""
        return bool(self._first)

    def request(self) -> Iterator[bytes]:
        """Yield the pieces to send, once; those of the content are the caller's own objects."""
        yield self._head
        for piece in self._content:
            yield from self._connection.send_with_data_passthrough(h11.Data(data=piece)) or ()
        self._connection.send(h11.EndOfMessage())

    def feed(self, content: bytes) -> Response | None:
        """Take the next bytes, b"" for the connection's end; return the answer once it is whole.

        Raises NotHttpError, BrokenOffError, or ServerAnswerError for an answer that is no valid HTTP or too large.
        """
        self._first += content[: 64 - len(self._first)]
        if not b"HTTP/".startswith(self._first[:5]):
            raise NotHttpError(self._first)
        self._connection.receive_data(content)
        try:
            while isinstance(event := self._connection.next_event(), h11.Event):
                if isinstance(event, h11.Response):
                    self._begin(event)
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    _check_size(len(self._body))
                elif isinstance(event, h11.EndOfMessage):
                    return Response(self._status, self._headers, bytes(self._body), self._keeps_alive())
        except h11.RemoteProtocolError as error:
            if not content:
                raise BrokenOffError(self._place()) from error
            if error.error_status_hint == 431:
                raise ServerAnswerError(f"the answer's headers have more than {MAX_HEAD_BYTES} bytes") from error
            raise ServerAnswerError(f"the answer is no valid HTTP/1: {str(error)[:120]}") from error
        return None

    def _begin(self, answer: h11.Response) -> None:
        if answer.http_version not in (b"1.0", b"1.1"):
            raise ServerAnswerError(f"the answer is one of HTTP/{answer.http_version.decode()}; expected HTTP/1")
        self._status = answer.status_code
        self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in answer.headers}
        _check_size(int(self._headers.get("content-length", 0)))

    def _keeps_alive(self) -> bool:
        states = self._connection.states.values()  # not done: the request was not sent whole, or one side closes
        return all(state is h11.DONE for state in states) and self._connection.trailing_data == (b"", False)

    def _place(self) -> str:
        if not self._status:
            return "before its headers ended" if self._connection.trailing_data[0] else "without an answer"
        length = self._headers.get("content-length")
        of = "" if length is None else f" of {length}"
        return f"after {len(self._body)}{of} bytes of the answer"


def _check_size(size: int) -> None:
    if size > MAX_ANSWER_BYTES:
        raise ServerAnswerError(f"the answer has {size} bytes or more; expected at most {MAX_ANSWER_BYTES}")


def read(ask: Ask, response: Response) -> Any:
    """Return what a good answer says: an `Answer` of "infer", True of "ready", a dictionary else.

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
        return Answer(_tensors(document, response.body[int(length) :]), str(document.get("model_version", "")))
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
