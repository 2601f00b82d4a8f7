from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from serving import metrics
from serving.metrics import Family, Metrics

COUNT = Family("codetr_things_total", "Things.", ("kind",))
TIME = Family("codetr_thing_seconds", "Time of a thing.", buckets=(1.0, 2.5))
ONCE_STOPPED = 3600.0  # a hand-over that only `close` makes


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a step does not wait for a busy machine; these tests do."""
    monkeypatch.setattr(metrics, "_CLOSE_SECONDS", 60.0)


class FakeServer:
    """The custom metrics of the Python backend: every call by family and labels."""

    def __init__(self, broken: bool = False) -> None:
        self.calls: list[tuple[str, dict[str, str], float]] = []
        self.made: list[tuple[str, dict[str, str]]] = []
        self.warnings: list[str] = []
        self.Logger = SimpleNamespace(log_warn=self.warnings.append)
        server = self

        class MetricFamily:
            COUNTER = "a counter"

            def __init__(self, name: str, description: str, kind: str) -> None:
                assert description
                assert kind == self.COUNTER
                self.name = name

            def Metric(self, labels: dict[str, str]) -> Any:  # noqa: N802  # the backend's name
                server.made.append((self.name, labels))

                def increment(value: float) -> None:
                    if broken:
                        raise RuntimeError("no shared memory")
                    server.calls.append((self.name, labels, value))

                return SimpleNamespace(increment=increment)

        self.MetricFamily = MetricFamily


def test_what_was_noted_is_handed_over_as_sums() -> None:
    server = FakeServer()
    counted = Metrics(server, "a_step", {}, ONCE_STOPPED)
    for _ in range(3):
        counted.record(COUNT, 2, "good")
    counted.record(COUNT, 1, "bad")
    assert server.calls == []  # a request does not wait for the server
    counted.close()
    assert server.calls == [
        ("codetr_things_total", {"model": "a_step", "kind": "good"}, 6),
        ("codetr_things_total", {"model": "a_step", "kind": "bad"}, 1),
    ]


def test_a_histogram_is_its_counters() -> None:
    server = FakeServer()
    counted = Metrics(server, "a_step", {}, ONCE_STOPPED)
    for value in (3.5, 1.0, 1.5, 0.25):
        counted.record(TIME, value)
    counted.close()
    assert server.calls == [
        ("codetr_thing_seconds_bucket", {"model": "a_step", "le": "1"}, 2),
        ("codetr_thing_seconds_bucket", {"model": "a_step", "le": "2.5"}, 3),
        ("codetr_thing_seconds_bucket", {"model": "a_step", "le": "+Inf"}, 4),
        ("codetr_thing_seconds_sum", {"model": "a_step"}, 6.25),
        ("codetr_thing_seconds_count", {"model": "a_step"}, 4),
    ]


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_values_arrive_without_further_requests() -> None:
    server = FakeServer()
    counted = Metrics(server, "a_step", {}, 0.01)
    for value in (1, 2):  # and again after the first hand-over
        counted.record(COUNT, value, "good")
        wait_for(lambda: bool(server.calls) and server.calls[-1][2] == value)  # noqa: B023  # called in this round
    counted.close()


def test_what_is_known_is_there_from_the_start_at_zero() -> None:
    server = FakeServer()
    Metrics(server, "a_step", {COUNT: [("good",), ("bad",)], TIME: [()]}, ONCE_STOPPED).close()
    assert server.made == [
        ("codetr_things_total", {"model": "a_step", "kind": "good"}),
        ("codetr_things_total", {"model": "a_step", "kind": "bad"}),
        ("codetr_thing_seconds_bucket", {"model": "a_step", "le": "1"}),
        ("codetr_thing_seconds_bucket", {"model": "a_step", "le": "2.5"}),
        ("codetr_thing_seconds_bucket", {"model": "a_step", "le": "+Inf"}),
        ("codetr_thing_seconds_sum", {"model": "a_step"}),
        ("codetr_thing_seconds_count", {"model": "a_step"}),
    ]
    assert server.calls == []


def test_a_release_without_custom_metrics_counts_nothing() -> None:
    counted = Metrics(SimpleNamespace(), "a_step", {COUNT: [("good",)]}, ONCE_STOPPED)
    counted.record(COUNT, 1, "good")
    counted.close()


def test_a_server_that_refuses_is_asked_once_and_the_log_says_so() -> None:
    server = FakeServer(broken=True)
    counted = Metrics(server, "a_step", {}, 0.01)
    counted.record(COUNT, 1, "good")
    wait_for(lambda: bool(server.warnings))
    counted.record(COUNT, 1, "good")
    counted.close()
    assert server.warnings == ["a_step: no custom metrics from here on: no shared memory"]


def test_a_server_that_was_killed_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer()
    counted = Metrics(server, "a_step", {}, ONCE_STOPPED)
    counted.record(COUNT, 1, "good")
    monkeypatch.setattr(os, "getppid", lambda: 1)  # orphans get another parent
    counted.close()
    assert server.calls == []


def families() -> list[Family]:
    return [value for value in vars(metrics).values() if isinstance(value, Family)]


def test_names_follow_the_conventions_of_prometheus() -> None:
    assert len(families()) >= 8
    for family in families():
        assert re.fullmatch(r"codetr_[a-z_]+", family.name)
        # counters end in _total; a histogram ends in its unit, and its bounds rise
        assert family.name.endswith(("_seconds", "_pixels", "_images") if family.buckets else ("_total",)), family.name
        assert list(family.buckets) == sorted(set(family.buckets))
        assert family.help.endswith(".")
        assert "model" not in family.labels  # every metric has it
