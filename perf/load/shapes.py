"""How many users, or arrivals a second, at which part of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shape = Literal["constant", "steps", "spike", "soak"]

STEP_COUNT = 5
# A spike: calm, this many times the load for a fifth of the run, calm again.
SPIKE_FACTOR = 4
# A soak reaches its load in this share of the run, and holds it.
SOAK_RAMP_SHARE = 0.02


@dataclass(frozen=True)
class Profile:
    """A shape with its peak (users, or arrivals a second)."""

    shape: Shape
    peak: float

    def load_at(self, share: float) -> float | None:
        """Return the load when `share` of the run (0..1) is done, or None when it is over."""
        if share >= 1:
            return None
        if self.shape == "steps":
            return self.peak * (int(share * STEP_COUNT) + 1) / STEP_COUNT
        if self.shape == "spike":
            return self.peak if 0.4 <= share < 0.6 else self.peak / SPIKE_FACTOR
        if self.shape == "soak":
            return self.peak * min(1.0, share / SOAK_RAMP_SHARE)
        return self.peak
