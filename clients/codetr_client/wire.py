"""What the client and its asyncio twin share: addresses, requests, answers and errors. Nothing here waits."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from codetr_client import contract, errors
from codetr_client.detections import Detections
from codetr_client.errors import CodetrError
from codetr_client.threshold import check_threshold

Protocol = Literal["grpc", "http"]
# Class names to use: COCO's 80, a list in label order, or None for what the server's configuration says.
ClassNames = Literal["coco"] | Sequence[str] | None

DEFAULT_PORTS: dict[Protocol, int] = {"grpc": 8001, "http": 8000}
DEFAULT_TIMEOUT = 60.0  # seconds, as tritonclient's own


@dataclass(frozen=True)
class Endpoint:
    """A model on a server and how to reach it; `timeout` in seconds bounds every call."""

    address: str
    protocol: Protocol
    timeout: float
    model: str

    @property
    def call_options(self) -> dict[str, Any]:
        """What every call needs: gRPC bounds the time of a call, HTTP that of the connection."""
        return {"client_timeout": self.timeout} if self.protocol == "grpc" else {}

    @property
    def config_options(self) -> dict[str, Any]:
        """What asking for a model's configuration needs, so that both protocols answer a dictionary."""
        return {"as_json": True, **self.call_options} if self.protocol == "grpc" else {}

    def library(self, name: str = "") -> Any:
        """Return tritonclient's module for the protocol, or its submodule `name`."""
        module = ".".join(filter(None, ("tritonclient", self.protocol, name)))
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise CodetrError(f"{module} is missing ({error}): pip install 'tritonclient[grpc,http]'") from error

    def request(self, payloads: Sequence[bytes], score_threshold: float | None) -> dict[str, Any]:
        """Return the arguments of tritonclient's `infer` for one request with one encoded image a payload."""
        image = self.library().InferInput("image", [len(payloads), 1], "BYTES")
        image.set_data_from_numpy(np.array(payloads, dtype=object).reshape(-1, 1))
        parameters = None if score_threshold is None else {"score_threshold": check_threshold(score_threshold)}
        return {"model_name": self.model, "inputs": [image], "parameters": parameters, **self.call_options}

    @contextlib.contextmanager
    def typed_errors(self) -> Iterator[None]:
        """Turn what tritonclient and its transports raise into the exceptions of `codetr_client.errors`."""
        try:
            yield
        except (CodetrError, asyncio.CancelledError):
            raise
        except Exception as error:
            typed = self._typed(error)
            if typed is None:
                raise
            raise typed from error

    def not_ready(self) -> errors.ModelNotReadyError:
        """Return the error of a model that the server knows but cannot run."""
        return errors.ModelNotReadyError(
            f"model '{self.model}' at {self.address} is not ready: it is loading or failed to load; "
            "the server's log says which"
        )

    def _typed(self, error: Exception) -> errors.ServiceError | None:
        from tritonclient.utils import InferenceServerException

        if isinstance(error, InferenceServerException):
            return self._from_server(str(error.status()).removeprefix("StatusCode."), error.message() or "")
        # asyncio's is a class of its own before Python 3.11
        if isinstance(error, TimeoutError | asyncio.TimeoutError):
            return self._timed_out()
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("aiohttp", "geventhttpclient"):
            return self._unreachable(str(error))
        # geventhttpclient's parser names its module without its package
        return self._unreachable("it does not speak HTTP") if type(error).__name__ == "HTTPParseError" else None

    def _from_server(self, status: str, message: str) -> errors.ServiceError:
        message = re.sub(r"^\[request id: [^\]]*\] ", "", message)
        if "has no available versions" in message:
            return self.not_ready()
        if status in ("NOT_FOUND", "404"):
            return errors.ModelNotFoundError(f"no model '{self.model}' at {self.address}: {message}")
        if status == "DEADLINE_EXCEEDED":
            return self._timed_out()
        if status in ("INVALID_ARGUMENT", "400"):
            return errors.RequestRefusedError(message)
        return self._unavailable(status, message)

    def _unavailable(self, status: str, message: str) -> errors.ServiceError:
        # gRPC gives one status to a full queue and to a connection that failed.
        if re.search(r"maximum queue size|timeout expired", message, re.IGNORECASE):
            return errors.ServerBusyError(f"{self.address} turned the request away: {message}")
        if status == "UNAVAILABLE" and "restricted" not in message:
            return self._unreachable(message)
        return errors.ServerFaultError(message)

    def _unreachable(self, reason: str) -> errors.ServerUnreachableError:
        # gRPC's text lists every address it tried; its last clause is the reason.
        reason = re.sub(r"^[A-Z_]+: ", "", " ".join(reason.split()).split("last error: ")[-1])
        return errors.ServerUnreachableError(
            f"no server answers {self.protocol} at {self.address}: {reason}; `codetr serve` starts one"
        )

    def _timed_out(self) -> errors.ServerTimeoutError:
        return errors.ServerTimeoutError(f"no answer from {self.address} within {self.timeout:g} s")


def endpoint(url: str | None, protocol: Protocol, timeout: float, model: str) -> Endpoint:
    """Return the checked endpoint; `url` is `host:port`, and without it the server is Triton's port on this machine.

    Raises CodetrError for a protocol, an address or a timeout that cannot be.
    """
    if protocol not in get_args(Protocol):
        raise CodetrError(f"protocol {protocol!r}: expected 'grpc' or 'http'")
    if not timeout > 0:
        raise CodetrError(f"timeout {timeout!r}: expected seconds above 0")
    address = (url or f"localhost:{DEFAULT_PORTS[protocol]}").removeprefix(f"{protocol}://").rstrip("/")
    if "://" in address or not re.search(r":\d+", address):
        raise CodetrError(
            f"url {url!r}: expected host:port, such as localhost:{DEFAULT_PORTS[protocol]} for {protocol}"
        )
    return Endpoint(address, protocol, timeout, model)


def known_names(class_names: ClassNames) -> tuple[str, ...] | None:
    """Return the class names that the caller gave, or None where the server is to be asked."""
    if class_names == "coco":
        return contract.coco_class_names()
    return None if class_names is None else tuple(class_names)


def names_from_config(config: Mapping[str, Any], model: str) -> tuple[str, ...]:
    """Return the class names in an ensemble's configuration (parameter `class_names`, JSON); () if it has none."""
    parameters = config.get("config", config).get("parameters", {})
    text = parameters.get("class_names", {}).get("string_value", "[]")
    try:
        names = json.loads(text)
    except ValueError as error:
        raise CodetrError(f"parameter class_names of model '{model}' is not JSON: {text!r}") from error
    return tuple(str(name) for name in names)


def names_without_config(error: errors.ServiceError) -> tuple[str, ...]:
    """Return no names where the server's operator restricted that endpoint; any other error is raised again."""
    if isinstance(error, errors.ServerFaultError) and "restricted" in str(error):
        return ()
    raise error


def read_detections(result: Any, names: Sequence[str]) -> list[Detections]:
    """Return the detections of every image of an answer, without the padding rows."""
    boxes, scores, labels, counts = (result.as_numpy(tensor.name) for tensor in contract.ensemble().outputs)
    return [
        Detections.named(boxes[image, :count].copy(), scores[image, :count].copy(), labels[image, :count].copy(), names)
        for image, count in enumerate(counts[:, 0].tolist())
    ]
