from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codetr_client.client import CoDetrClient
from codetr_client.detections import Detections
from codetr_client.errors import CodetrError
from codetr_client.files import RESULTS_NAME, detect_files
from codetr_client.threshold import check_threshold


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(0, 0.0, id="int 0"),
        pytest.param(1, 1.0, id="int 1"),
        pytest.param(0.3, 0.3, id="float"),
        pytest.param(np.float32(0.7), float(np.float32(0.7)), id="float32"),
        pytest.param(np.float64(0.7), 0.7, id="float64"),
        pytest.param(np.float16(0.5), 0.5, id="float16"),
        pytest.param(np.int64(1), 1.0, id="a NumPy integer"),
        pytest.param(Fraction(1, 4), 0.25, id="a fraction"),
        pytest.param(5e-324, 5e-324, id="the smallest float"),
    ],
)
def test_a_real_number_in_0_to_1_is_a_threshold(value: Any, expected: float) -> None:
    checked = check_threshold(value)
    assert (type(checked), checked) == (float, expected)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("0.3", id="text"),
        pytest.param(True, id="a truth value"),
        pytest.param(np.True_, id="NumPy's truth value"),
        pytest.param(None, id="None"),
        pytest.param(-1e-9, id="just below 0"),
        pytest.param(1.0000001, id="just above 1"),
        pytest.param(30, id="per cent"),
        pytest.param(10**400, id="an integer that no float holds"),
        pytest.param(float("nan"), id="NaN"),
        pytest.param(np.float32("nan"), id="NaN of NumPy"),
        pytest.param(float("inf"), id="infinite"),
        pytest.param([0.3], id="a list"),
        pytest.param(np.array([0.3]), id="an array"),
        pytest.param(0.3 + 0j, id="a complex number"),
        pytest.param(Decimal("0.3"), id="a decimal"),
    ],
)
def test_anything_else_is_refused_with_its_value(value: Any) -> None:
    with pytest.raises(CodetrError, match=r"score_threshold: expected a number in 0\.\.1, got "):
        check_threshold(value)
    with pytest.raises(CodetrError, match=r"score_threshold: expected a number in 0\.\.1, got "):
        scored(0.5).above(value)


def test_a_long_value_is_cut() -> None:
    with pytest.raises(CodetrError, match=re.escape("got 'xxxxxxxxxxxx...xxxxxxxxxxxxx'")):
        check_threshold("x" * 10_000)


def scored(*scores: float) -> Detections:
    n = len(scores)
    labels = np.arange(n, dtype=np.int32)
    return Detections.named(np.zeros((n, 4), np.float32), np.array(scores, np.float32), labels, ())


# float32(0.7) is below 0.7, float32(0.3) above 0.3.
@pytest.mark.parametrize("value", [0.1, 0.3, 0.6, 0.7, 0.9])
@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
def test_a_score_equals_its_own_threshold_in_every_precision(value: float, kind: Any) -> None:
    score = np.float32(value)
    others = np.nextafter(score, np.float32(0)), np.nextafter(score, np.float32(1))
    assert scored(score, *others).above(kind(value)).labels.tolist() == [0, 2]


def test_0_keeps_all_and_1_only_certainty() -> None:
    assert len(scored(0.0, 0.5, 1.0).above(0)) == 3
    assert scored(0.0, np.nextafter(np.float32(1), np.float32(0)), 1.0).above(1).labels.tolist() == [2]


@pytest.mark.parametrize("value", ["0.3", True, 30, float("nan")])
def test_both_clients_refuse_an_impossible_threshold_before_the_request(call: Any, server: Any, value: Any) -> None:
    with pytest.raises(CodetrError, match=r"score_threshold: expected a number in 0\.\.1"):
        call("detect", b"jpeg", value, url=server.url, protocol=server.protocol)
    assert server.seen == []


def test_an_impossible_threshold_for_files_is_one_error_and_leaves_no_folder(server: Any, tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match=r"score_threshold: expected a number in 0\.\.1"), CoDetrClient() as client:
        detect_files(client, [tmp_path / "a.jpg", tmp_path / "b.jpg"], tmp_path / "out", float("nan"))
    assert not (tmp_path / "out").exists()


def test_a_threshold_of_numpy_is_written_as_a_number(server: Any, tmp_path: Path) -> None:
    with CoDetrClient() as client:
        detect_files(client, [], tmp_path, np.float32(0.5))  # type: ignore[arg-type]
    assert '"score_threshold": 0.5' in (tmp_path / RESULTS_NAME).read_text()
