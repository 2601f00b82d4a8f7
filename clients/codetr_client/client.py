"""The client: images in, detections out, over gRPC or HTTP."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from codetr_client import contract, forks, probe, wire
from codetr_client.deadline import Deadline
from codetr_client.detections import Detections
from codetr_client.errors import ClientStateError
from codetr_client.faults import UnexplainedError
from codetr_client.images import ImageInput, encode_all
from codetr_client.options import Tls, checked_headers
from codetr_client.steps import Calls, Send, Steps, Wait
from codetr_client.wire import Ask, Endpoint

T = TypeVar("T")
C = TypeVar("C")


class Transport(Protocol):
    """What carries questions: gRPC or HTTP."""

    def send(self, ask: Ask, headers: Mapping[str, str], deadline: Deadline) -> Any:
        """Return the answer to one question; raises a ServiceError."""

    def after_fork(self) -> None:
        """Make what was made in the parent process usable here, or raise ClientStateError."""

    def close(self) -> None:
        """Close the connections."""


def transport(endpoint: Endpoint) -> Transport:
    """Return what carries questions to an endpoint."""
    if endpoint.protocol == "grpc":
        forks.check()
        from codetr_client.grpc_channels import GrpcTransport

        return GrpcTransport(endpoint)
    from codetr_client.http_sockets import HttpTransport

    return HttpTransport(endpoint)


class Connection:
    """Performs the steps of calls, in any thread; raises ClientStateError after `close`, and where a fork broke it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._transport = transport(endpoint)
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._is_closed = False

    def close(self) -> None:
        """Close the connections; a second time does nothing."""
        # a fork leaves what its parent made to its parent
        if not self._is_closed and os.getpid() == self._process:
            self._transport.close()
        self._is_closed = True

    def run(self, steps: Steps[T]) -> T:
        """Perform the steps of a call and return its result."""
        self._check()
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._perform(step)
                except Exception as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            return end.value

    def _perform(self, step: Send | Wait) -> Any:
        if isinstance(step, Send):
            self._check()
            try:
                return self._transport.send(step.ask, step.headers, step.deadline)
            except UnexplainedError as error:
                raise probe.explained(self.endpoint, error, step.deadline) from error
        return time.sleep(step.seconds)

    def _check(self) -> None:
        if self._is_closed:
            raise ClientStateError("the client is closed; make another")
        if os.getpid() != self._process:
            with self._lock:
                if os.getpid() != self._process:
                    self._transport.after_fork()
                    self._process = os.getpid()


class BaseClient(Generic[C]):
    """What both clients have in common; arguments as `CoDetrClient`."""

    _connect: Callable[[Endpoint], C]

    def __init__(
        self,
        url: str | None = None,
        protocol: wire.Protocol | None = None,
        timeout: float = wire.DEFAULT_TIMEOUT,
        class_names: wire.ClassNames = None,
        model: str = contract.ENSEMBLE,
        *,
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        retries: int = 0,
        keepalive: float | None = None,
    ) -> None:
        self._endpoint = wire.endpoint(url, protocol, timeout, model, headers, tls, retries, keepalive)
        self._calls = Calls(self._endpoint, class_names)
        self._connection = self._connect(self._endpoint)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._endpoint.address!r}, {self._endpoint.protocol!r})"

    def __reduce__(self) -> Any:
        raise ClientStateError(f"a {type(self).__name__} cannot travel to another process; make one there")

    def _deadline(self) -> Deadline:
        return Deadline(self._endpoint.timeout)


class CoDetrClient(BaseClient[Connection]):
    """A connection to a server that runs the `codetr` ensemble; any thread may use it.

        with CoDetrClient("localhost:8001") as client:
            detections = client.detect("street.jpg", score_threshold=0.3)

    url: `host:port`, or a url of grpc://, grpcs://, http:// or https://, which over HTTP may have a path prefix;
        dns:///host:port spreads requests of gRPC over all addresses of the name; without it Triton's default port on
        this machine (8001 gRPC, 8000 HTTP). No proxy of the environment is used.
    protocol: "grpc" or "http"; without it that of the url, else gRPC.
    timeout: seconds for one call in all: name lookup, connection, request, every byte of the answer, repeats.
    class_names: "coco", or names in label order; without it the server's configuration is asked once, and where the
        server keeps that to itself the names are "class 17".
    model: the ensemble's name.
    headers: sent with every request (gRPC: metadata), such as {"authorization": "Bearer ..."}; never shown.
    tls: CA, client certificate and server name; a url of https:// or grpcs:// is encrypted without it too.
    retries: how often a call is repeated at most where the server is not available (busy, away, loading), after waits
        that double from 0.1 to 5 s, with jitter, and never beyond `timeout`.
    keepalive: seconds without traffic after which the connection is probed; None: never.

    Raises CodetrError for arguments that cannot be.
    """

    _connect = Connection

    def __enter__(self) -> CoDetrClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; a second time does nothing."""
        self._connection.close()

    def detect(
        self, image: ImageInput, score_threshold: float | None = None, *, headers: Mapping[str, str] | None = None
    ) -> Detections:
        """Return the detections of one image: a path, encoded bytes, a Pillow image or RGB uint8 [H, W, 3].

        `score_threshold` (0..1) replaces the server's setting for this request; `headers` are added to the client's.
        Raises InvalidImageError for what cannot be read here, and a `codetr_client.errors.ServiceError` for the rest.
        """
        return self.detect_batch([image], score_threshold, headers=headers)[0]

    def detect_batch(
        self,
        images: Iterable[ImageInput],
        score_threshold: float | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> list[Detections]:
        """Return the detections of several images, of any sizes, sent as one request.

        The request fails as a whole. The server bounds its images by the ensemble's `max_batch_size`; arguments and
        errors otherwise as in `detect`.
        """
        deadline, added = self._deadline(), checked_headers(headers)
        payloads = encode_all(images)
        if not payloads:
            return []
        return self._connection.run(self._calls.detect(payloads, score_threshold, added, deadline))

    def class_names(self) -> tuple[str, ...]:
        """Return the detector's class names in label order; () where neither the caller nor the server names them."""
        return self._connection.run(self._calls.class_names({}, self._deadline()))

    def models(self, *, headers: Mapping[str, str] | None = None) -> tuple[str, ...]:
        """Return the names of the server's models that answer as this client expects, sorted.

        Raises RequestDeniedError where the server shuts its statistics, which name them; `headers` may hold its key.
        """
        return self._connection.run(self._calls.models(checked_headers(headers), self._deadline()))

    def check(self) -> None:
        """Raise a `codetr_client.errors.ServiceError` unless the model can answer now."""
        self._connection.run(self._calls.check({}, self._deadline()))
