from __future__ import annotations

import json
from typing import Any

import pytest

from serving.errors import CodetrError
from serving.parameters import read_parameters


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("score_treshold", id="a misspelling"),
        pytest.param("iou", id="not a request's"),
        pytest.param("Score_Threshold", id="another case"),
        pytest.param("score_threshold ", id="a space behind"),
        pytest.param("", id="no name"),
        pytest.param("tritonic", id="nearly Triton's"),
        pytest.param("a\nb", id="a line break"),
    ],
)
def test_an_unknown_parameter_is_refused_by_name(name: str) -> None:
    with pytest.raises(CodetrError) as caught:
        read_parameters({"score_threshold": 0.5, name: 0.5})
    assert (
        str(caught.value) == f"unknown request parameter {name!r}; expected some of score_threshold, deadline_unix_ms"
    )
    assert read_parameters({"score_threshold": 0.5, name: 0.5}, "ignore") == 0.5


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("sequence_id", id="of the sequence extension"),
        pytest.param("priority", id="of the queue's policy"),
        pytest.param("timeout", id="of the queue's policy too"),
        pytest.param("binary_data_size", id="of the binary extension"),
        pytest.param("binary_data_output", id="of the binary extension too"),
        pytest.param("triton_enable_empty_final_response", id="reserved by its prefix"),
        pytest.param("X-Request-Id", id="a header"),
        pytest.param("traceparent", id="a header without a hyphen"),
        pytest.param("Authorization", id="a header in capitals"),
    ],
)
def test_tritons_own_parameters_and_forwarded_headers_are_let_through(name: str) -> None:
    assert read_parameters({name: "x"}) is None


def test_a_very_long_name_is_cut() -> None:
    with pytest.raises(CodetrError) as caught:
        read_parameters({"x" * 100_000: 1})
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("text", ['"0.3"', "true", "null", "-0.1", "1.5", "NaN", "1e999", "[0.3]", "{}"])
def test_impossible_score_thresholds_of_a_request_are_refused(text: str) -> None:
    parameters: dict[str, Any] = json.loads(f'{{"score_threshold": {text}}}')
    for way in ("refuse", "ignore"):
        with pytest.raises(CodetrError, match=r"score_threshold: expected a number in 0..1, got "):
            read_parameters(parameters, way)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ['"soon"', "true", "null", "-1", "NaN", "Infinity", "[1]"])
def test_a_deadline_that_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(CodetrError, match="deadline_unix_ms: expected milliseconds since 1970, got "):
        read_parameters(json.loads(f'{{"deadline_unix_ms": {text}}}'))


@pytest.mark.parametrize("text", ["1795665600000", "1795665600000.5", "0"])
def test_a_deadline_is_let_through(text: str) -> None:
    assert read_parameters(json.loads(f'{{"deadline_unix_ms": {text}}}')) is None


@pytest.mark.parametrize(("text", "expected"), [("0", 0.0), ("1", 1.0), ("0.3", 0.3)])
def test_a_score_threshold_is_a_number_in_0_to_1(text: str, expected: float) -> None:
    assert read_parameters(json.loads(f'{{"score_threshold": {text}}}')) == expected
