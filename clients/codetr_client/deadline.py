"""The time of one call, and when a failed one is repeated."""

from __future__ import annotations

import random
import time

from codetr_client.errors import (
    ModelNotReadyError,
    ServerBusyError,
    ServerProtocolError,
    ServerTlsError,
    ServerUnreachableError,
    ServiceError,
)

FIRST_WAIT = 0.1  # seconds before the first repeat, doubled for each further one
MAX_WAIT = 5.0

# What another try may find otherwise. Detecting changes nothing on the server, so a request whose connection broke off
# may be sent twice.
_PASSING = (ModelNotReadyError, ServerBusyError, ServerUnreachableError)
_LASTING = (ServerProtocolError, ServerTlsError)


class Deadline:
    """When a call has to be over: `seconds` from now, whatever the system's clock is set to meanwhile."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left, 0 where none are."""
        return max(0.0, self._end - time.monotonic())

    def unix_ms(self) -> int:
        """Return the end as Unix time in milliseconds, by this machine's clock."""
        return int((time.time() + self.left()) * 1000)


def wait_before_repeat(error: ServiceError, repeats: int, retries: int, deadline: Deadline) -> float | None:
    """Return the seconds to wait before a call is repeated, or None if its error is the answer.

    The wait is drawn from the upper half of FIRST_WAIT·2^repeats seconds, so that clients that failed together do not
    come back together. After it a try still needs time: one that has none would hide what the last one ended in.

    Args:
        error: what the last try ended in.
        repeats: how often the call was repeated already.
        retries: how often it may be.
        deadline: of the call; nothing is sent after it.
    """
    if repeats >= retries or not isinstance(error, _PASSING) or isinstance(error, _LASTING):
        return None
    wait = min(FIRST_WAIT * 2.0 ** min(repeats, 10), MAX_WAIT) * random.uniform(0.5, 1.0)
    return wait if wait + FIRST_WAIT < deadline.left() else None
