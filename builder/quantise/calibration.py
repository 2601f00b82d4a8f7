"""The ranges of what goes into layers, from histograms over a detector's run on pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from builder.detector import Detector
from builder.engines import EngineError
from builder.engines.eager import EagerDetector

Method = Literal["entropy", "percentile", "max"]

BINS = 4096  # of a histogram, over both signs
LEVELS = 128  # magnitudes that INT8 has
# Of the values of a layer's input that may be cut off, above and below together.
PERCENTILE_CUT = 1e-4
_ENTROPY_STEP = 8  # bins between the thresholds that are tried


class Range(NamedTuple):
    """What values a tensor takes, or is to be cut to."""

    low: float
    high: float

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True)
class Ranges:
    """The ranges of one layer."""

    input: Range
    output: Range


class Histogram:
    """Counts of the values seen, in `BINS` bins over a range that doubles when it is left."""

    def __init__(self) -> None:
        self.low, self.high, self.limit = np.inf, -np.inf, 0.0
        self.counts = np.zeros(BINS, np.float64)

    def add(self, values: Tensor) -> None:
        """Count `values` of any shape and floating-point type.

        Raises:
            EngineError: some are NaN or infinite.
        """
        values = values.detach().float().flatten()
        low, high = (float(each) for each in values.aminmax())
        if not np.isfinite([low, high]).all():
            raise EngineError("has values that are NaN or infinite")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(max(abs(low), abs(high)))
        self.counts += torch.histc(values, BINS, -self.limit, self.limit).cpu().numpy()

    def _widen(self, magnitude: float) -> None:
        if self.limit == 0:
            self.limit = max(magnitude, float(np.finfo(np.float32).tiny) * BINS)
        while magnitude > self.limit:
            self.limit *= 2
            inner = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, np.float64)
            self.counts[BINS // 4 : -BINS // 4] = inner

    def range(self, method: Method) -> Range:
        """Return the range that a method gives to what was counted; it always holds 0."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "percentile":
            total, edges = self.counts.cumsum(), np.linspace(-self.limit, self.limit, BINS + 1)
            cut = total[-1] * PERCENTILE_CUT / 2
            low = max(low, min(0.0, float(edges[np.searchsorted(total, cut, side="right")])))
            high = min(high, max(0.0, float(edges[np.searchsorted(total, total[-1] - cut) + 1])))
        elif method == "entropy":
            threshold = self._entropy_threshold()
            low, high = max(low, -threshold), min(high, threshold)
        return Range(low, high)

    def _entropy_threshold(self) -> float:
        """Return the magnitude at which cutting and rounding to `LEVELS` lose least, by Kullback-Leibler divergence.

        Source: S. Migacz, "8-bit inference with TensorRT" (GTC 2017). Zeros are left out: no scale changes them.
        """
        counts = self.counts[BINS // 2 :] + self.counts[: BINS // 2][::-1]  # of magnitudes
        counts[0] = counts[1]
        last = int(counts.nonzero()[0][-1]) + 1 if counts.any() else 1
        tried = range(LEVELS, last + 1, _ENTROPY_STEP)
        if not tried:
            return self.limit
        best = min(tried, key=lambda bins: _divergence(counts, bins))
        return self.limit * best / len(counts)


def _divergence(counts: NDArray[np.float64], bins: int) -> float:
    """Return what is lost where magnitudes above the first `bins` are cut to them, and those rounded to `LEVELS`."""
    kept = counts[:bins]
    cut = kept.copy()
    cut[-1] += counts[bins:].sum()
    level = np.arange(bins) * LEVELS // bins
    is_there = kept > 0
    sums = np.bincount(level, kept, LEVELS)
    shares = np.bincount(level, is_there, LEVELS)
    rounded = np.where(is_there, (sums / np.maximum(shares, 1))[level], 0)
    expected, found = cut / cut.sum(), rounded / max(rounded.sum(), np.finfo(float).tiny)
    both = (expected > 0) & (found > 0)
    lost = expected[(expected > 0) & ~both].sum()  # magnitudes that no level is left for
    return float((expected[both] * np.log(expected[both] / found[both])).sum() + lost * np.log(1e9))


def calibrate(
    detector: Detector,
    layers: Mapping[str, nn.Module],
    batches: Iterable[tuple[NDArray[np.uint8], NDArray[np.int32]]],
) -> dict[str, tuple[Histogram, Histogram]]:
    """Return the histograms of the inputs and outputs of a detector's layers, by their names.

    Args:
        detector: in float32, on any device.
        layers: of the detector.
        batches: images uint8 [B, H, W, 3] and their valid sizes int32 [B, 2].

    Raises:
        EngineError: there is no image, a layer was never called, or has values that are NaN or infinite.
    """
    seen = {name: (Histogram(), Histogram()) for name in layers}
    called: set[str] = set()

    def observe(name: str, _: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
        called.add(name)
        try:
            for histogram, values in zip(seen[name], (inputs[0], output), strict=True):
                histogram.add(values)
        except EngineError as error:
            raise EngineError(f"the layer {name} {error}; check the weights and the pictures") from error

    run, count = EagerDetector(detector), 0
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(observe, name)))
        for images, sizes in batches:
            run(images, sizes)
            count += len(images)
    if not count:
        raise EngineError("there is no picture to calibrate on; give a folder that holds some")
    silent = [name for name in layers if name not in called]
    if silent:
        raise EngineError(
            f"{len(silent)} layers were not called on the pictures, among them {silent[0]}; leave them out"
        )
    return seen
