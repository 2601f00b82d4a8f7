"""The search for the fastest set of groups that keeps the accuracy: each group alone, then those that pay together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from builder.engines import EngineError


@dataclass(frozen=True)
class Trial:
    """An engine with some groups quantised, measured."""

    groups: tuple[str, ...]  # none: the engine that the others are compared with
    layers: int  # quantised
    loss: float  # AP 50:95 lost beside the float32 detector, 0..1; below 0 where it is better
    ms: float  # median of one batch
    fault: str | None = None  # why there is no such engine; loss and ms are NaN then

    def fits(self, budget: float) -> bool:
        """Return whether it exists and loses no more AP than that."""
        return self.fault is None and self.loss <= budget

    def to_dict(self) -> dict[str, Any]:
        """Return it for a manifest; JSON has no NaN."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Search:
    """All trials, in their order, and the best."""

    trials: tuple[Trial, ...]
    best: Trial
    budget: float
    measured: str  # what the loss was measured on

    def cells(self, trial: Trial) -> tuple[str, str, str, str, str]:
        """Return a trial as a table's row: groups, layers, AP lost, milliseconds and a remark."""
        groups, layers = ", ".join(trial.groups) or "nothing", str(trial.layers)
        if trial.fault is not None:
            return groups, layers, "-", "-", trial.fault
        is_slow = trial.ms >= self.trials[0].ms and trial is not self.trials[0]
        remark = "chosen" if trial == self.best else "not faster" if is_slow else ""
        remark = remark if trial.fits(self.budget) else "over the budget"
        return groups, layers, f"{trial.loss:+.4f}", f"{trial.ms:.2f}", remark


def search(groups: Sequence[str], measure: Callable[[tuple[str, ...]], Trial], budget: float, measured: str) -> Search:
    """Return the fastest set of groups within the budget, with the trials that led to it.

    Each group is tried alone. Those that are within the budget and faster than no group are tried together; from there
    the group that lost most alone is left out until the rest is within the budget.

    Args:
        groups: to choose from.
        measure: builds and measures an engine with groups quantised.
        budget: AP that may be lost, 0..1.
        measured: what on, for the report.

    Raises:
        EngineError: no set is within the budget and faster than none; the message has the table.
    """
    plain = measure(())
    alone = [measure((group,)) for group in groups]
    trials = [plain, *alone]
    paying = [trial for trial in alone if trial.fits(budget) and trial.ms < plain.ms]
    while len(paying) > 1:
        chosen = tuple(group for group in groups if any(group in trial.groups for trial in paying))
        together = measure(chosen)
        trials.append(together)
        if together.fits(budget):
            break
        paying.remove(max(paying, key=lambda trial: trial.loss))
    best = min((trial for trial in trials if trial.fits(budget)), key=lambda trial: trial.ms, default=plain)
    found = Search(tuple(trials), best, budget, measured)
    if not best.groups:
        raise EngineError(
            f"no group makes the engine faster and loses at most {budget:g} AP; use the precision without quantisation."
            f"\n{table(found)}"
        )
    return found


def table(found: Search) -> str:
    """Return the trials as a Markdown table, the chosen set marked."""
    lines = ["| quantised | layers | AP lost | ms | |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(found.cells(trial))} |" for trial in found.trials]
    return "\n".join([*lines, "", f"AP lost on {found.measured}; the budget is {found.budget:g}."])


def restored(content: dict[str, Any]) -> Search:
    """Return what `described` made of a search."""
    trials = tuple(_trial(each) for each in content["trials"])
    return Search(trials, trials[content["best"]], content["budget"], content["measured"])


def _trial(content: dict[str, Any]) -> Trial:
    figures = {key: math.nan if content[key] is None else content[key] for key in ("loss", "ms")}
    return Trial(**{**content, **figures, "groups": tuple(content["groups"])})


def described(found: Search) -> dict[str, Any]:
    """Return a search for a manifest."""
    trials: Iterable[Trial] = found.trials
    return {
        "trials": [trial.to_dict() for trial in trials],
        "best": found.trials.index(found.best),
        "budget": found.budget,
        "measured": found.measured,
    }
