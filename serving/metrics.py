"""What the steps count, for Triton's page of Prometheus metrics, through the Python backend's custom metrics.

Handing one number to the server takes two processes some 40 µs, so a request only notes its values, and a thread adds
them up and hands the sums over once a second. The backend's own histograms take no sums, only single values. So a
histogram is made of the counters that it consists of on the page, which every release has that has custom metrics at
all. Instances of one step share the server's counters: their values add up.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# Upper bounds of the histograms' buckets.
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PIXELS = (1e4, 1e5, 3e5, 1e6, 2e6, 4e6, 8e6, 16e6, 32e6, 64e6)
_BATCHES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

HAND_OVER_SECONDS = 1.0
# Values noted and not yet handed over; beyond it the oldest are lost. More than a step can note in a second.
_MOST_NOTED = 100_000
_CLOSE_SECONDS = 2.0  # a server that was killed takes nothing any more


@dataclass(frozen=True)
class Family:
    """A metric: its name and labels by Prometheus' conventions; with `buckets` (upper bounds) a histogram."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


IMAGES = Family(
    "codetr_images_total", "Encoded images received, by format and what became of them.", ("format", "outcome")
)
IMAGE_PIXELS = Family("codetr_image_pixels", "Pixels of the images that were decoded.", buckets=_PIXELS)
STAGE_SECONDS = Family(
    "codetr_stage_seconds", "Time of a stage: of one image, or of one batch in the engine.", ("stage",), _SECONDS
)
BATCH_IMAGES = Family("codetr_engine_batch_images", "Images that the engine ran at once.", buckets=_BATCHES)
ENGINE_BUSY = Family(
    "codetr_engine_busy_seconds_total", "Time in which an engine of several instances computed, whichever they were."
)
CANDIDATES = Family("codetr_candidates_total", "Boxes that went into suppression.")
DROPPED = Family("codetr_candidates_dropped_total", "Boxes of the engine that were NaN or infinite.")
DETECTIONS = Family("codetr_detections_total", "Boxes that were answered.")
ERRORS = Family("codetr_request_errors_total", "Requests that a step refused or failed, by cause.", ("cause",))

# What is known before the first request is on the page from the start, at 0: a rate needs a value to rise from.
Known = Mapping[Family, Iterable[tuple[str, ...]]]


class Recorder(Protocol):
    """Takes one value of a metric; `labels` are the values of the family's labels."""

    def __call__(self, family: Family, value: float, *labels: str) -> None:
        """Take it."""


def unrecorded(family: Family, value: float, *labels: str) -> None:
    """Take a value that nobody asked for."""


class Metrics:
    """The metrics of one instance of a step.

    Where the server has no custom metrics, or refuses them, nothing is counted and nothing fails. A server that runs
    with `--allow-metrics=false` takes the values and shows no page.

    Args:
        pb_utils: the module `triton_python_backend_utils`.
        model: the value of the label `model`.
        known: families and labels to show from the start.
        interval: seconds between two hand-overs.
    """

    def __init__(self, pb_utils: Any, model: str, known: Known, interval: float = HAND_OVER_SECONDS) -> None:
        self._pb_utils = pb_utils
        self._model = model
        self._noted: deque[tuple[Family, tuple[str, ...], float]] = deque(maxlen=_MOST_NOTED)
        self._families: dict[str, Any] = {}
        self._counters: dict[tuple[Family, tuple[str, ...]], list[Any]] = {}
        self._server = os.getppid()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(interval,), name="metrics", daemon=True)
        self._started = False
        self._works = hasattr(pb_utils, "MetricFamily")
        self._guarded(lambda: [self._of(family, labels) for family, all_of in known.items() for labels in all_of])

    def record(self, family: Family, value: float, *labels: str) -> None:
        """Note one value: what a counter grows by, or an observation of a histogram."""
        if not self._works:
            return
        self._noted.append((family, labels, value))
        if not self._started:  # not before: a step that fails to load has no thread to stop
            self._started = True
            self._thread.start()

    def close(self) -> None:
        """Hand over what is left; call it from `finalize`."""
        self._stop.set()
        if self._started:
            self._thread.join(_CLOSE_SECONDS)

    def _run(self, interval: float) -> None:
        while not self._stop.wait(interval):
            self._guarded(self._hand_over)
        self._guarded(self._hand_over)

    def _hand_over(self) -> None:
        values: dict[tuple[Family, tuple[str, ...]], list[float]] = defaultdict(list)
        while self._noted:
            family, labels, value = self._noted.popleft()
            values[family, labels].append(value)
        for (family, labels), these in values.items():
            for counter, growth in zip(self._of(family, labels), growths(family, these), strict=True):
                # A server that was killed would never answer, and the call keep this process alive.
                self._works = os.getppid() == self._server
                if not self._works:
                    return
                if growth:
                    counter.increment(growth)

    def _guarded(self, call: Callable[[], object]) -> None:
        """Make a call to the server; one that fails ends the counting, with a line in the log, and nothing else."""
        if not self._works:
            return
        try:
            call()
        except Exception as error:
            self._works = False
            self._pb_utils.Logger.log_warn(f"{self._model}: no custom metrics from here on: {error}")

    def _of(self, family: Family, labels: tuple[str, ...]) -> list[Any]:
        """Return the counters of a metric, in the order of `growths`."""
        key = (family, labels)
        if key not in self._counters:
            values = {"model": self._model, **dict(zip(family.labels, labels, strict=True))}
            self._counters[key] = [self._new(family, part, values | more) for part, more in parts(family)]
        return self._counters[key]

    def _new(self, family: Family, part: str, labels: dict[str, str]) -> Any:
        name, kinds = family.name + part, self._pb_utils.MetricFamily
        if name not in self._families:
            self._families[name] = kinds(name=name, description=family.help, kind=kinds.COUNTER)
        return self._families[name].Metric(labels=labels)


def parts(family: Family) -> list[tuple[str, dict[str, str]]]:
    """Return how the names of a metric's counters end, and the labels that they have beside the metric's own."""
    if not family.buckets:
        return [("", {})]
    bounds = [str(int(bound)) if bound.is_integer() else str(bound) for bound in family.buckets]
    return [*(("_bucket", {"le": bound}) for bound in [*bounds, "+Inf"]), ("_sum", {}), ("_count", {})]


def growths(family: Family, values: Sequence[float]) -> list[float]:
    """Return by how much each of a metric's counters grows; a bucket counts what is not above its bound."""
    if not family.buckets:
        return [sum(values)]
    ordered = sorted(values)
    return [*(bisect_right(ordered, bound) for bound in family.buckets), len(values), sum(values), len(values)]
