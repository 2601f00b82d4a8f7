"""Medians, spreads and percentiles, each with one meaning throughout the reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

# The factor that makes the median absolute deviation of a normal distribution its standard deviation.
MAD_TO_SIGMA = 1.4826
# A level is stable if neither the throughput nor the p99 of its windows spans more than these shares of the median.
STABLE_THROUGHPUT = 0.10
STABLE_P99 = 0.25


@dataclass(frozen=True)
class Summary:
    """Repeated measurements of one quantity: their median, and half the width of what repeats span around it."""

    median: float
    spread: float  # relative: robust standard deviation / median
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """Return the median and the relative spread (1.4826 x median absolute deviation / median) of `values`."""
    array = np.asarray(values, np.float64)
    median = float(np.median(array))
    deviation = float(np.median(np.abs(array - median))) * MAD_TO_SIGMA
    return Summary(median, deviation / median if median else 0.0, len(array))


def relative_range(values: Sequence[float]) -> float:
    """Return (largest - smallest) / median: the spread to state for a handful of repeats; 0 for one value."""
    array = np.asarray(values, np.float64)
    median = float(np.median(array))
    return float(array.max() - array.min()) / median if median else 0.0


def mean_by_key(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each key over those that have it."""
    keys = dict.fromkeys(key for value in values for key in value)
    return {key: fmean(value[key] for value in values if key in value) for key in keys}


def windows_agree(windows: Sequence[tuple[float, float]]) -> bool:
    """Return whether windows (throughput, p99) agree within STABLE_THROUGHPUT and STABLE_P99."""
    rates, p99s = zip(*windows, strict=True) if windows else ((0.0,), (0.0,))
    return relative_range(rates) <= STABLE_THROUGHPUT and relative_range(p99s) <= STABLE_P99
