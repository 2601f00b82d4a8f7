from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from codetr_client.errors import ServerBusyError
from serving import metrics, telemetry
from serving.errors import CodetrError
from serving.refusals import ImageRefusedError, Refusal
from serving.telemetry import Telemetry


class Server(SimpleNamespace):
    """A server without custom metrics, and what it logged."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []
        super().__init__(Logger=SimpleNamespace(log_warn=self.warnings.append, log_error=self.errors.append))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("CODETR_LOG", "json")
    return Server()


def failed(server: Server, error: Exception, request_id: str = "id-7") -> list[tuple[Any, ...]]:
    """Let a step fail, and return what was counted."""
    counted: list[tuple[Any, ...]] = []
    step = Telemetry(server, "codetr_preprocess")
    step.record = lambda family, value, *labels: counted.append((family, value, labels))
    step.failed(request_id, error, 0.01234)
    return counted


def test_a_refused_image_is_a_warning_without_its_content(server: Server) -> None:
    error = ImageRefusedError("expected JPEG, got b'secret'", Refusal("wrong_format", "unknown", 6, None))
    assert failed(server, error) == [(metrics.ERRORS, 1, ("image",))]
    assert [json.loads(line) for line in server.warnings] == [
        {
            "request_id": "id-7",
            "model": "codetr_preprocess",
            "cause": "wrong_format",
            "format": "unknown",
            "bytes": 6,
            "ms": 12.3,
        }
    ]
    assert server.errors == []


def test_the_size_of_an_image_is_told_where_its_header_tells_it(server: Server) -> None:
    failed(server, ImageRefusedError("damaged", Refusal("damaged", "PNG", 600, (64, 48))))
    assert json.loads(server.warnings[0])["size"] == "64x48"


def test_an_impossible_request_is_a_warning_with_its_message(server: Server) -> None:
    assert failed(server, CodetrError("score_threshold: expected a number"), "") == [(metrics.ERRORS, 1, ("request",))]
    (line,) = map(json.loads, server.warnings)
    assert (line["cause"], line["error"]) == ("request", "score_threshold: expected a number")
    assert "request_id" not in line


def test_a_request_turned_away_is_no_fault_of_the_client(server: Server) -> None:
    assert failed(server, ServerBusyError("9 images wait")) == [(metrics.ERRORS, 1, ("busy",))]
    (line,) = map(json.loads, server.warnings)
    assert (line["cause"], line["error"]) == ("busy", "9 images wait")


def test_a_flood_that_is_turned_away_is_a_line_a_second(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[Any] = []
    step = Telemetry(server, "codetr_preprocess")
    step.record = lambda family, value, *labels: counted.append(labels)
    for now in (10.0, 10.4, 10.9, 11.0, 12.5):
        monkeypatch.setattr(telemetry, "monotonic", lambda now=now: now)
        step.failed(f"at {now}", ServerBusyError("9 images wait"), 0.0)
    assert counted == [("busy",)] * 5
    lines = [json.loads(line) for line in server.warnings]
    assert [(line["request_id"], line.get("more")) for line in lines] == [
        ("at 10.0", None),
        ("at 11.0", 2),
        ("at 12.5", None),
    ]


@pytest.mark.parametrize("style", ["text", "json", "off"])
def test_a_fault_of_ours_is_an_error_that_is_never_silent(
    server: Server, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODETR_LOG", style)
    assert failed(server, RuntimeError("out of memory")) == [(metrics.ERRORS, 1, ("internal",))]
    (line,) = server.errors
    assert "RuntimeError: out of memory" in line
    assert "id-7" in line
    assert server.warnings == []


def test_refusals_can_be_silent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODETR_LOG", "off")
    failed(server, CodetrError("no"))
    assert server.warnings == server.errors == []


@pytest.mark.parametrize("step", telemetry.OF_STEPS)
def test_series_known_from_the_start_have_the_labels_of_their_families(step: metrics.Known) -> None:
    for family, all_of in step.items():
        assert all(len(labels) == len(family.labels) for labels in all_of)
        assert len(set(all_of)) == len(list(all_of))
