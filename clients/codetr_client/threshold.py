"""The score threshold of a request: the lowest score that is wanted."""

from __future__ import annotations

import numbers
import reprlib
from typing import Any

from codetr_client.errors import CodetrError


def check_threshold(value: Any) -> float:
    """Return a `score_threshold` as a Python float: a detection is wanted if its score is at least this.

    Scores are float32, and a threshold is rounded to float32 before the two are compared. So a score of
    `float32(0.7)`, which is a little less than 0.7, passes a threshold of 0.7.

    Raises CodetrError for what is no real number in 0..1; truth values and text are none, NumPy's scalars are.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if is_number and 0 <= value <= 1:
        return float(value)
    raise CodetrError(f"score_threshold: expected a number in 0..1, got {reprlib.repr(value)}")
