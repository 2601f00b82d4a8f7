"""How far a tensor of an engine is from PyTorch's."""

from __future__ import annotations

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


def difference(expected: Tensor, actual: Tensor) -> Difference:
    """Compare two tensors of one shape; an element that is NaN, or the same infinity, in both counts as equal."""
    expected, actual = expected.detach().double(), actual.detach().to(expected.device).double()
    same = (expected == actual) | (expected.isnan() & actual.isnan())
    finite = expected.isfinite() & actual.isfinite()
    strange = int((~finite & ~same).sum())
    number = finite.sum().clamp(min=1)
    known = torch.where(finite, expected, 0.0)
    apart = torch.where(finite, actual, 0.0) - known
    scale = (known.square().sum() / number).sqrt()
    size = (apart.square().sum() / number).sqrt()
    if size == 0:
        error = worst = 0.0
    elif scale == 0:
        error = worst = torch.inf
    else:
        error = float(size / scale)
        worst = float((apart.abs() / (scale + known.abs())).max())
    return Difference(torch.inf if strange else error, worst, strange)
