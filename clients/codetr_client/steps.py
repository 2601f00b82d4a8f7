"""What a call does, step by step, for both clients: each step is a question or a wait, which the client performs."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from codetr_client import contract, errors, wire
from codetr_client.deadline import Deadline, wait_before_repeat
from codetr_client.detections import Detections
from codetr_client.faults import DeadlinePassedError
from codetr_client.threshold import check_threshold
from codetr_client.wire import Answer, Ask, Endpoint


@dataclass(frozen=True)
class Send:
    """Ask this and give the answer back."""

    ask: Ask
    headers: Mapping[str, str] = field(repr=False)
    deadline: Deadline


@dataclass(frozen=True)
class Wait:
    """Do nothing for some seconds."""

    seconds: float


T = TypeVar("T")
# How often an image is sent again whose answer's class names have gone with their version.
_ASKED_AGAIN = 3
Steps: TypeAlias = Generator[Send | Wait, Any, T]


class Calls:
    """The calls of one client; they remember each version's class names, and whether the server's clock is another."""

    def __init__(self, endpoint: Endpoint, class_names: wire.ClassNames) -> None:
        self.endpoint = endpoint
        self._given = wire.known_names(class_names)
        self._names: dict[str, tuple[str, ...]] = {}
        self._version = ""  # that answered last
        self._sends_deadline = True

    def detect(
        self,
        payloads: Sequence[bytes],
        score_threshold: float | None,
        headers: Mapping[str, str],
        deadline: Deadline,
    ) -> Steps[list[Detections]]:
        """Return the detections of several encoded images, sent as one request."""
        left = _ASKED_AGAIN
        while True:
            answer = yield from self._infer(tuple(payloads), score_threshold, headers, deadline)
            self._version = answer.version
            try:
                names = yield from self._names_of(answer.version, headers, deadline)
            except (errors.ModelNotFoundError, errors.ModelNotReadyError):
                # Another version has taken over since, and nobody knows any more what the classes were called.
                if not left or not answer.version:
                    raise
                left -= 1
            else:
                return wire.read_detections(answer.tensors, len(payloads), names)

    def class_names(self, headers: Mapping[str, str], deadline: Deadline) -> Steps[tuple[str, ...]]:
        """Return the class names of the version that answered last; () where the server keeps them to itself."""
        return (yield from self._names_of(self._version, headers, deadline))

    def _names_of(self, version: str, headers: Mapping[str, str], deadline: Deadline) -> Steps[tuple[str, ...]]:
        """Return the class names of a version, which the server is asked for once."""
        if self._given is not None:
            return self._given
        if version not in self._names:
            ask = Ask("config", self.endpoint.model, version=version)
            try:
                config = yield from self._asked(Send(ask, headers, deadline))
            except errors.RequestDeniedError:
                self._names[version] = ()
            else:
                self._names[version] = wire.names_from_config(config, self.endpoint.model)
        return self._names[version]

    def models(self, headers: Mapping[str, str], deadline: Deadline) -> Steps[tuple[str, ...]]:
        """Return the names of the server's models that keep the ensemble's contract."""
        answer = yield from self._asked(Send(Ask("statistics", self.endpoint.model), headers, deadline))
        found = []
        for name in wire.names_in_statistics(answer):
            try:
                metadata = yield from self._asked(Send(Ask("metadata", name), headers, deadline))
            except (errors.ModelNotFoundError, errors.ModelNotReadyError):  # unloaded meanwhile
                continue
            if wire.is_ensemble(metadata):
                found.append(name)
        return tuple(found)

    def check(self, headers: Mapping[str, str], deadline: Deadline) -> Steps[None]:
        """Raise a ServiceError unless the model can answer now."""
        yield from self.ready(self.endpoint.model, headers, deadline)

    def ready(self, model: str, headers: Mapping[str, str], deadline: Deadline) -> Steps[None]:
        """Raise a ServiceError unless the model can answer now."""
        repeats = 0
        while True:
            try:
                return (yield from self._ready_now(model, headers, deadline))
            except errors.ServiceError as error:
                repeats = yield from self._repeat(error, repeats, deadline)

    def _ready_now(self, model: str, headers: Mapping[str, str], deadline: Deadline) -> Steps[None]:
        unready: errors.ModelNotReadyError | None = None
        try:
            yield Send(Ask("ready", model), headers, deadline)
        except errors.ModelNotReadyError as error:
            unready = error
        # The metadata of a model that is unknown is an error that says so. And Triton's metrics page, or a proxy's
        # login, answers any question well over HTTP: only metadata show that it is the model which did.
        yield Send(Ask("metadata", model), headers, deadline)
        if unready is not None:
            raise unready

    def ask(self, ask: Ask, headers: Mapping[str, str], deadline: Deadline) -> Steps[Any]:
        """Return the answer to one question."""
        return (yield from self._asked(Send(ask, headers, deadline)))

    def _infer(
        self,
        payloads: tuple[bytes, ...],
        score_threshold: float | None,
        headers: Mapping[str, str],
        deadline: Deadline,
    ) -> Steps[Answer]:
        repeats = 0
        while True:
            ask = Ask("infer", self.endpoint.model, payloads, self._parameters(score_threshold, deadline))
            try:
                return (yield Send(ask, headers, deadline))
            except DeadlinePassedError:
                # It has not passed here: the server's clock is ahead, and this client's deadlines mean nothing to it.
                if not self._sends_deadline or not deadline.left():
                    raise
                self._sends_deadline = False
            except errors.ServiceError as error:
                repeats = yield from self._repeat(error, repeats, deadline)

    def _asked(self, send: Send) -> Steps[Any]:
        repeats = 0
        while True:
            try:
                return (yield send)
            except errors.ServiceError as error:
                repeats = yield from self._repeat(error, repeats, send.deadline)

    def _repeat(self, error: errors.ServiceError, repeats: int, deadline: Deadline) -> Steps[int]:
        wait = wait_before_repeat(error, repeats, self.endpoint.options.retries, deadline)
        if wait is None:
            raise error
        yield Wait(wait)
        return repeats + 1

    def _parameters(self, score_threshold: float | None, deadline: Deadline) -> dict[str, float | int]:
        # `timeout` is Triton's own, in microseconds; it does not reach the Python steps as a parameter.
        parameters: dict[str, float | int] = {"timeout": max(1, int(deadline.left() * 1e6))}
        if self._sends_deadline:
            parameters[contract.DEADLINE_PARAMETER] = deadline.unix_ms()
        if score_threshold is not None:
            parameters["score_threshold"] = check_threshold(score_threshold)
        return parameters
