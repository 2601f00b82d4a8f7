"""The parameters of a request: which there are, which are Triton's own, and which are refused."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any, Literal

from codetr_client.contract import DEADLINE_PARAMETER
from codetr_client.threshold import check_threshold
from serving.errors import CodetrError

SCORE_THRESHOLD = "score_threshold"
KNOWN = (SCORE_THRESHOLD, DEADLINE_PARAMETER)

UnknownParameters = Literal["refuse", "ignore"]
_WAYS: tuple[UnknownParameters, ...] = ("refuse", "ignore")

# Triton's own, of both protocols; names that begin with `triton_` are reserved for it too.
# Source: `docs/protocol/extension_{parameters,sequence,schedule_policy,binary_data}.md` of triton-inference-server.
_OF_TRITON = frozenset({
    "binary_data_output", "binary_data_size", "headers", "priority", "sequence_end", "sequence_id",
    "sequence_start", "timeout",
})  # fmt: skip
# Headers arrive as parameters where the server forwards them (`--http-header-forward-pattern`). Their names have a
# hyphen, which no parameter of ours has, or are one of these.
_HEADERS = frozenset({
    "accept", "authorization", "b3", "baggage", "connection", "cookie", "date", "expect", "forwarded", "from",
    "host", "origin", "pragma", "range", "referer", "te", "traceparent", "tracestate", "trailer", "upgrade", "via",
})  # fmt: skip


def check_way(value: str) -> None:
    """Check the setting `unknown_parameters`.

    Raises:
        CodetrError: it is neither `refuse` nor `ignore`.
    """
    if value not in _WAYS:
        raise CodetrError(f"unknown_parameters: expected one of {', '.join(_WAYS)}, got {value!r}")


def read_parameters(parameters: Mapping[str, Any], unknown: UnknownParameters = "refuse") -> float | None:
    """Check a request's parameters and return its `score_threshold`, the lowest score it wants to see, if it has one.

    Args:
        parameters: all that arrived with the request, Triton's own and forwarded headers among them.
        unknown: what is done about others, which are misspelt most likely.

    Raises:
        CodetrError: there is an unknown parameter, `score_threshold` is no number in 0..1, or `deadline_unix_ms` no
            time.
    """
    others = sorted(name for name in parameters if not _is_expected(name))
    if others and unknown == "refuse":
        raise CodetrError(f"unknown request parameter {reprlib.repr(others[0])}; expected some of {', '.join(KNOWN)}")
    deadline = parameters.get(DEADLINE_PARAMETER, 0)
    if not isinstance(deadline, (int, float)) or isinstance(deadline, bool) or not 0 <= deadline < math.inf:
        raise CodetrError(f"{DEADLINE_PARAMETER}: expected milliseconds since 1970, got {reprlib.repr(deadline)}")
    return check_threshold(parameters[SCORE_THRESHOLD]) if SCORE_THRESHOLD in parameters else None


def _is_expected(name: str) -> bool:
    return name in KNOWN or name in _OF_TRITON or name.startswith("triton_") or "-" in name or name.lower() in _HEADERS
