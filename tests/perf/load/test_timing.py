from __future__ import annotations

from typing import Any

import pytest

from codetr_client.errors import RequestRefusedError, ServerTimeoutError
from perf.load import timing
from perf.load.scenarios import Shot
from perf.load.timing import ClientPool, TooManyInFlightError, UnexpectedSuccessError, send

GOOD = Shot("jpeg 8x8", b"jpeg", is_bad=False)
BAD = Shot("bad: text", b"text", is_bad=True)


class StubClient:
    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.closed = False

    def detect(self, image: bytes) -> None:
        if self.error:
            raise self.error

    def close(self) -> None:
        self.closed = True


def fired(shot: Shot, error: Exception | None) -> dict[str, Any]:
    events: list[dict[str, Any]] = []
    send(ClientPool(lambda: StubClient(error)), shot, "grpc", lambda **event: events.append(event))
    (event,) = events
    return event


@pytest.mark.parametrize(
    ("shot", "error", "expected"),
    [
        pytest.param(GOOD, None, None, id="answered"),
        pytest.param(BAD, RequestRefusedError("no image"), None, id="a bad image refused is right"),
        pytest.param(GOOD, RequestRefusedError("no image"), RequestRefusedError, id="a good image refused is not"),
        pytest.param(BAD, None, UnexpectedSuccessError, id="a bad image answered is not"),
        pytest.param(BAD, ServerTimeoutError("late"), ServerTimeoutError, id="a bad image that times out is not"),
        pytest.param(GOOD, ServerTimeoutError("late"), ServerTimeoutError, id="timeout"),
    ],
)
def test_judgement(shot: Shot, error: Exception | None, expected: type[Exception] | None) -> None:
    event = fired(shot, error)
    assert type(event["exception"]) is (expected or type(None))
    assert (event["request_type"], event["name"], event["response_length"]) == ("grpc", shot.name, 4)
    assert event["response_time"] >= 0


def test_clients_are_used_again_and_closed() -> None:
    made: list[StubClient] = []
    pool = ClientPool(lambda: made.append(StubClient()) or made[-1])
    for _ in range(3):
        send(pool, GOOD, "grpc", lambda **event: None)
    assert len(made) == 1
    first, second = pool.take(), pool.take()
    assert first is not second, "requests at the same time do not share a client"
    pool.give_back(first)
    pool.give_back(second)
    assert pool.in_flight == 0
    pool.close()
    assert all(client.closed for client in made)


def test_a_client_is_given_back_after_a_fault() -> None:
    pool = ClientPool(lambda: StubClient(ServerTimeoutError("late")))
    send(pool, GOOD, "grpc", lambda **event: None)
    assert pool.in_flight == 0


def test_a_server_far_behind_gets_no_further_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MAX_IN_FLIGHT", 1)
    events: list[dict[str, Any]] = []
    pool = ClientPool(StubClient)
    pool.take()
    send(pool, GOOD, "grpc", lambda **event: events.append(event))
    assert isinstance(events[0]["exception"], TooManyInFlightError)
    assert pool.in_flight == 1
