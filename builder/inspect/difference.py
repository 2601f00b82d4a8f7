"""How far a tensor of an engine is from PyTorch's."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Difference(NamedTuple):
    """Of one tensor; relative to the root mean square of PyTorch's, so that it is one scale for every layer."""

    error: float  # root mean square of the difference; infinite where one is a number and the other none
    worst: float  # of one element, relative to the root mean square plus the element
    not_finite: int  # elements that are NaN or infinite in one of the two alone, or of another sign

    @property
    def judged(self) -> float:
        """What a tolerance is held against: the error, or a worst element that is far above what noise makes of it."""
        return max(self.error, self.worst / WORST)


# Of noise the worst of some 1e6 elements is 5 times the root mean square, and up to 30 where a few channels are far
# larger than the others.
WORST = 40.0


CHUNK = 1 << 22  # elements that are compared at once, in float64


def difference(expected: Tensor, actual: Tensor) -> Difference:
    """Compare two tensors of one shape; an element that is NaN, or the same infinity, in both counts as equal."""
    pairs = list(zip(expected.detach().flatten().split(CHUNK), actual.detach().flatten().split(CHUNK), strict=True))
    numbers = strange = 0
    known = apart = 0.0
    for ours, other in pairs:
        left, right, finite, not_finite = _finite(ours, other)
        numbers, strange = numbers + finite, strange + not_finite
        known, apart = known + float(left.square().sum()), apart + float((right - left).square().sum())
    if apart == 0:
        return Difference(math.inf if strange else 0.0, 0.0, strange)
    if known == 0:
        return Difference(math.inf, math.inf, strange)
    scale = math.sqrt(known / numbers)
    worst = 0.0
    for ours, other in pairs:
        left, right, *_ = _finite(ours, other)
        worst = max(worst, float(((right - left).abs() / (scale + left.abs())).max()))
    return Difference(math.inf if strange else math.sqrt(apart / known), worst, strange)


def _finite(expected: Tensor, actual: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Return both in float64 with 0 where one is no number.

    And how many are numbers in both, and how many are none in one alone or in another way.
    """
    expected = expected.double()
    actual = actual.to(expected.device).double()
    finite = expected.isfinite() & actual.isfinite()
    same = (expected == actual) | (expected.isnan() & actual.isnan())
    strange = int((~finite & ~same).sum())
    return torch.where(finite, expected, 0.0), torch.where(finite, actual, 0.0), int(finite.sum()), strange
