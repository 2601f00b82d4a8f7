"""What one instance of a step tells the outside: counts for the metrics page, and a log line for each failure."""

from __future__ import annotations

from time import monotonic
from typing import Any

from codetr_client.errors import ServerBusyError
from serving import metrics, refusals, request_log
from serving.errors import CodetrError
from serving.metrics import Known, Metrics, Recorder, unrecorded
from serving.refusals import ImageRefusedError
from serving.request_log import Value

# Values of the label `cause` of failed requests: the image, the rest of the request, too many at a time, our own fault.
IMAGE, REQUEST, BUSY, INTERNAL = "image", "request", "busy", "internal"

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_UNKNOWN = [(refusals.UNKNOWN_FORMAT, outcome) for outcome in (refusals.EMPTY, refusals.WRONG_FORMAT)]
_OF_A_FORMAT = (
    refusals.DECODED, refusals.DAMAGED, refusals.BAD_HEADER, refusals.TOO_MANY_BYTES, refusals.TOO_MANY_PIXELS,
)  # fmt: skip  # a set of words
OF_PREPROCESS: Known = {
    metrics.IMAGES: [(name, outcome) for name in _FORMATS for outcome in _OF_A_FORMAT] + _UNKNOWN,
    metrics.IMAGE_PIXELS: [()],
    metrics.STAGE_SECONDS: [("decode",), ("resize",)],
    metrics.ERRORS: [(IMAGE,), (REQUEST,), (BUSY,), (INTERNAL,)],
}
OF_DETECTOR: Known = {
    metrics.BATCH_IMAGES: [()],
    metrics.STAGE_SECONDS: [("engine",)],
    metrics.ERRORS: [(BUSY,), (INTERNAL,)],
}
OF_POSTPROCESS: Known = {
    metrics.CANDIDATES: [()],
    metrics.DROPPED: [()],
    metrics.DETECTIONS: [()],
    metrics.STAGE_SECONDS: [("suppression",)],
    metrics.ERRORS: [(REQUEST,), (INTERNAL,)],
}
OF_STEPS = (OF_PREPROCESS, OF_DETECTOR, OF_POSTPROCESS)


class Telemetry:
    """Counts and log lines of one instance.

    Args:
        pb_utils: the module `triton_python_backend_utils`.
        model: the model's name on the server.
        known: what it counts; None counts nothing.

    Raises:
        CodetrError: the environment asks for a way of logging that there is not.
    """

    def __init__(self, pb_utils: Any, model: str, known: Known | None = None) -> None:
        self._pb_utils = pb_utils
        self._model = model
        self._style = request_log.chosen_style()
        self._unsaid = _Unsaid()
        self._metrics = None if known is None else Metrics(pb_utils, model, known)
        self.record: Recorder = unrecorded if self._metrics is None else self._metrics.record

    def failed(self, request_id: str, error: Exception, seconds: float) -> None:
        """Count and log a request that failed with `error` after so many seconds in this step."""
        cause = _cause(error)
        self.record(metrics.ERRORS, 1, cause)
        unsaid = self._unsaid.of_next() if cause == BUSY else 0
        if unsaid is None:
            return
        fields = {
            "request_id": request_id or None,
            "model": self._model,
            **_described(error, cause),
            "ms": round(seconds * 1e3, 1),
            "more": unsaid or None,
        }
        if cause == INTERNAL:  # a fault of ours is never silent
            request_log.write(self._pb_utils.Logger.log_error, "text" if self._style == "off" else self._style, fields)
        else:
            request_log.write(self._pb_utils.Logger.log_warn, self._style, fields)

    def close(self) -> None:
        """Hand over the last counts; call it from `finalize`."""
        if self._metrics is not None:
            self._metrics.close()


class _Unsaid:
    """Lets one line a second through: a flood of requests that are turned away is none of the log's."""

    def __init__(self) -> None:
        self._said = float("-inf")
        self._count = 0

    def of_next(self) -> int | None:
        """Return how many lines were left out before this one, or None for a line to leave out."""
        now = monotonic()
        if now - self._said < 1:
            self._count += 1
            return None
        count, self._said, self._count = self._count, now, 0
        return count


def _cause(error: Exception) -> str:
    if isinstance(error, ImageRefusedError):
        return IMAGE
    if isinstance(error, ServerBusyError):
        return BUSY
    return REQUEST if isinstance(error, CodetrError) else INTERNAL


def _described(error: Exception, cause: str) -> dict[str, Value]:
    if isinstance(error, ImageRefusedError):  # whose message can quote bytes of the image
        refusal = error.refusal
        size = None if refusal.size is None else "{}x{}".format(*refusal.size)
        return {"cause": refusal.cause, "format": refusal.format, "bytes": refusal.bytes, "size": size}
    return {"cause": cause, "error": f"{type(error).__name__}: {error}" if cause == INTERNAL else str(error)}
