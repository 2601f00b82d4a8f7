"""What both clients and both protocols share: addresses, questions, answers. Nothing here waits."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from codetr_client import contract, errors
from codetr_client.detections import Detections
from codetr_client.errors import CodetrError
from codetr_client.options import DEFAULT_TIMEOUT, Options, Tls

__all__ = ["DEFAULT_PORTS", "DEFAULT_TIMEOUT", "Ask", "ClassNames", "Endpoint", "Protocol", "endpoint"]

Protocol = Literal["grpc", "http"]
# Class names to use: COCO's 80, a list in label order, or None for what the server's configuration says.
ClassNames = Literal["coco"] | Sequence[str] | None
# An answer's tensors by name.
Tensors: TypeAlias = dict[str, npt.NDArray[Any]]

DEFAULT_PORTS: dict[Protocol, int] = {"grpc": 8001, "http": 8000}
METRICS_PORT = 8002
# Schemes: protocol, whether encrypted, and the port where the url has none.
SCHEMES: dict[str, tuple[Protocol, bool, int | None]] = {
    "grpc": ("grpc", False, None),
    "grpcs": ("grpc", True, 443),
    "http": ("http", False, 80),
    "https": ("http", True, 443),
}
DTYPES = {"FP32": np.float32, "INT32": np.int32, "UINT8": np.uint8}
# A server that answers more than this does not answer what was asked; a batch of 128 images takes 1 MB.
MAX_ANSWER_BYTES = 64 << 20


@dataclass(frozen=True)
class Ask:
    """One question to a server.

    what: "infer", "ready", "metadata", "config" of a model; "statistics" of all.
    payloads: encoded images of "infer".
    parameters: of the request.
    version: of the model, of "config"; "" for the one that answers now.
    """

    what: Literal["infer", "ready", "metadata", "config", "statistics"]
    model: str
    payloads: tuple[bytes, ...] = field(default=(), repr=False)
    parameters: Mapping[str, float | int] = field(default_factory=dict, hash=False)
    version: str = ""


@dataclass(frozen=True)
class Answer:
    """The answer to "infer": its tensors, and the version of the model that computed them, "" if it does not say."""

    tensors: Tensors
    version: str


@dataclass(frozen=True)
class Endpoint:
    """A model on a server and how to reach it."""

    host: str
    port: int
    protocol: Protocol
    model: str
    options: Options
    prefix: str = ""  # of every path over HTTP, without a slash at its end
    # "dns://" and what may follow it: the host stands for several servers, among which gRPC spreads the requests
    resolver: str = ""

    @property
    def authority(self) -> str:
        """Return `host:port`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def address(self) -> str:
        """Return `host:port`, and the path prefix if there is one."""
        return self.authority + self.prefix

    @property
    def url(self) -> str:
        """Return what leads here: the address, with its scheme where it has one or the connection is encrypted."""
        if self.resolver:
            return self.target
        return self.address if self.tls is None else f"{self.protocol}s://{self.address}"

    @property
    def target(self) -> str:
        """Return what gRPC connects to, in its own notation."""
        return f"{self.resolver}/{self.authority}" if self.resolver else self.authority

    @property
    def timeout(self) -> float:
        """Return the seconds of one call."""
        return self.options.timeout

    @property
    def tls(self) -> Tls | None:
        """Return how the connection is encrypted, if it is."""
        return self.options.tls

    @property
    def is_local(self) -> bool:
        """Whether the address is this machine's own."""
        if self.host.lower().rstrip(".").endswith("localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def not_ready(self, model: str) -> errors.ModelNotReadyError:
        """Return the error of a model that the server knows but cannot run."""
        return errors.ModelNotReadyError(
            f"model '{model}' at {self.address} is not ready: it is loading or failed to load; "
            "the server's log says which"
        )


def endpoint(
    url: str | None,
    protocol: Protocol | None,
    timeout: float,
    model: str,
    headers: Mapping[str, str] | None = None,
    tls: Tls | None = None,
    retries: int = 0,
    keepalive: float | None = None,
) -> Endpoint:
    """Return the checked endpoint.

    url: `host:port`, or with a scheme (`grpc`, `grpcs`, `http`, `https`) and, over HTTP, a path prefix; or gRPC's
        `dns:///host:port`, every address of that name; without it the server is Triton's port on this machine.
    protocol: "grpc" or "http"; None for that of the url's scheme, or gRPC.

    Raises CodetrError for a protocol, an address or an option that cannot be.
    """
    if protocol is not None and protocol not in get_args(Protocol):
        raise CodetrError(f"protocol {protocol!r}: expected 'grpc' or 'http'")
    if not isinstance(model, str) or not model:
        raise CodetrError(f"model {model!r}: expected the name of an ensemble, such as {contract.ENSEMBLE}")
    resolver, plain = _resolver(url)
    if resolver and protocol == "http":
        raise CodetrError(f"url {url!r} is one of grpc, but protocol is 'http'; leave one of them out")
    scheme, host, port, prefix = _parts(plain, protocol)
    spoken, encrypted, _ = SCHEMES.get(scheme, (protocol or "grpc", tls is not None, None))
    if protocol not in (None, spoken):
        raise CodetrError(f"url {url!r} is one of {spoken}, but protocol is {protocol!r}; leave one of them out")
    if tls is not None and not encrypted:
        raise CodetrError(f"url {url!r} is not encrypted, but tls is given; expected {scheme}s://")
    if prefix and spoken == "grpc":
        raise CodetrError(f"url {url!r}: gRPC has no path prefix; expected {host}:{port}")
    options = Options(
        timeout, {} if headers is None else headers, tls or (Tls() if encrypted else None), retries, keepalive
    )
    if options.tls is not None:
        options.tls.context()  # a file at fault is an error now, not at the first call
    return Endpoint(host, port, spoken, model, options, prefix, resolver)


def _resolver(url: str | None) -> tuple[str, str | None]:
    """Return the part of gRPC's `dns://[name server]/host:port` before its last slash, and the rest of an address."""
    found = re.fullmatch(r"(dns://[\w.:\[\]-]*)/([^/]+)", url, re.ASCII) if isinstance(url, str) else None
    return (found[1], found[2]) if found else ("", url)


def _parts(url: str | None, protocol: Protocol | None) -> tuple[str, str, int, str]:
    """Return scheme ("" if there is none), host, port and path prefix of an address."""
    usual = DEFAULT_PORTS[protocol or "grpc"]
    if url is None or url == "":
        return "", "localhost", usual, ""
    expected = f"expected host:port, such as localhost:{usual} for {protocol or 'grpc'}"
    scheme, separator, rest = url.rpartition("://")
    if "@" in rest:  # not shown: it may hold a password
        raise CodetrError("url with a user: expected host:port; credentials travel in headers")
    if (separator and scheme not in SCHEMES) or re.search(r"[^!-~]|[?#\\<>\"]", rest):
        raise CodetrError(f"url {url!r}: {expected}")
    try:
        parsed = urlsplit(f"//{rest}")
        host, port = parsed.hostname or "", parsed.port
    except ValueError:
        host, port = "", None
    port = port if port is not None else SCHEMES.get(scheme, ("grpc", False, None))[2]
    # two colons outside brackets: an IPv6 address whose end would be read as a port
    if not host or not port or parsed.netloc.rpartition("]")[2].count(":") > 1:
        raise CodetrError(f"url {url!r}: {expected}")
    return scheme, host, port, parsed.path.rstrip("/")


def known_names(class_names: ClassNames) -> tuple[str, ...] | None:
    """Return the class names that the caller gave, or None where the server is to be asked."""
    if class_names == "coco":
        return contract.coco_class_names()
    return None if class_names is None else tuple(class_names)


def names_from_config(config: Mapping[str, Any], model: str) -> tuple[str, ...]:
    """Return the class names in an ensemble's configuration (parameter `class_names`, JSON); () if it has none."""
    try:
        parameters = config.get("config", config).get("parameters", {})
        text = parameters.get("class_names", {}).get("string_value", "[]")
    except AttributeError as error:
        raise errors.ServerAnswerError(f"the configuration of model '{model}' is none of Triton's") from error
    try:
        names = json.loads(text)
    except (TypeError, ValueError) as error:
        raise CodetrError(f"parameter class_names of model '{model}' is not JSON: {text!r}") from error
    if not isinstance(names, list):
        raise CodetrError(f"parameter class_names of model '{model}': expected a JSON list, got {text!r}")
    return tuple(str(name) for name in names)


def names_in_statistics(answer: Any) -> list[str]:
    """Return the names in the answer to "statistics", sorted; raises ServerAnswerError if it is none of Triton's."""
    try:
        return sorted({str(each["name"]) for each in answer.get("model_stats", [])})
    except (AttributeError, KeyError, TypeError) as error:
        raise errors.ServerAnswerError("the statistics are none of Triton's") from error


def is_ensemble(metadata: Any) -> bool:
    """Whether a model's metadata name the inputs and outputs of the ensemble's contract."""
    expected = contract.ensemble()
    try:
        inputs, outputs = ({each["name"] for each in metadata.get(key, [])} for key in ("inputs", "outputs"))
    except (AttributeError, KeyError, TypeError):
        return False
    return inputs == {each.name for each in expected.inputs} and outputs == {each.name for each in expected.outputs}


def read_detections(tensors: Tensors, images: int, names: Sequence[str]) -> list[Detections]:
    """Return the detections of every image of an answer, without the padding rows.

    Raises ServerAnswerError for tensors that are not those of the contract.
    """
    boxes, scores, labels, counts = (
        _checked(tensors, tensor, images) for tensor in contract.ensemble(_rows(tensors)).outputs
    )
    if not ((counts >= 0) & (counts <= boxes.shape[1])).all():
        raise errors.ServerAnswerError(f"num_detections: expected 0 to {boxes.shape[1]}, got {counts.ravel().tolist()}")
    return [
        Detections.named(boxes[image, :count].copy(), scores[image, :count].copy(), labels[image, :count].copy(), names)
        for image, count in enumerate(counts[:, 0].tolist())
    ]


def _rows(tensors: Tensors) -> int:
    boxes = tensors.get("boxes")
    return contract.MAX_DETECTIONS if boxes is None or boxes.ndim != 3 else boxes.shape[1]


def _checked(tensors: Tensors, expected: contract.Tensor, images: int) -> npt.NDArray[Any]:
    shape = (images, *expected.dims)
    found = tensors.get(expected.name)
    if found is None:
        raise errors.ServerAnswerError(
            f"no output {expected.name} in the answer, which has {', '.join(sorted(tensors)) or 'none'}; "
            "is the model an ensemble of `codetr build`?"
        )
    if found.shape != shape or found.dtype != DTYPES[expected.dtype]:
        raise errors.ServerAnswerError(
            f"output {expected.name}: expected {expected.dtype} {list(shape)}, got {found.dtype} {list(found.shape)}"
        )
    return found


def tensor_from_bytes(name: str, datatype: str, shape: Sequence[int], content: bytes) -> npt.NDArray[Any]:
    """Return an output's array; raises ServerAnswerError for a type, a shape or a length that cannot be."""
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise errors.ServerAnswerError(f"output {name}: expected one of {', '.join(DTYPES)}, got {datatype!r}")
    sides = [int(side) for side in shape]
    count = 1
    for side in sides:
        count *= side  # NumPy's product would overflow
    if min(sides, default=1) < 0 or count * np.dtype(dtype).itemsize != len(content):
        raise errors.ServerAnswerError(f"output {name}: {datatype} {sides} does not fit its {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(sides)
