"""What one server takes for a request, from what a sweep has measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.contract import DETECTOR, ENSEMBLE, POSTPROCESS, PREPROCESS
from serving.errors import CodetrError

# Of the repositories that `codetr build` writes; a sweep says only of what it measured how many there were.
INSTANCES = {PREPROCESS: 3, DETECTOR: 1, POSTPROCESS: 2}
# Percentiles of one request at a time, of which the time beyond the median is drawn.
_PERCENTILES = (50, 90, 95, 99)
# Mean batches closer than this say nothing about what one image more takes.
_BATCH_SPREAD = 0.5


@dataclass(frozen=True)
class Service:
    """A server: seconds by step, how many instances each has, and what is around them.

    preprocess, postprocess: seconds of a request. batch_seconds, image_seconds: a batch of n images takes the detector
    batch_seconds + n * image_seconds. around: seconds of a request outside the steps, in the network, the ensemble and
    the client. beyond: how much longer than its median a request took that was alone, at the percentiles 50, 90, 95
    and 99. instances: of pre-processing, detector and post-processing.
    """

    preprocess: float
    batch_seconds: float
    image_seconds: float
    max_batch: int
    postprocess: float
    around: float = 0.0
    beyond: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    instances: tuple[int, int, int] = (3, 1, 2)

    def detector(self, images: int) -> float:
        """Return the seconds of a batch."""
        return self.batch_seconds + images * self.image_seconds

    @property
    def highest_rate(self) -> float:
        """Requests a second that one server can answer at most, however long they wait."""
        rates = [self.max_batch / self.detector(self.max_batch) * self.instances[1]]
        rates += [
            count / seconds
            for seconds, count in ((self.preprocess, self.instances[0]), (self.postprocess, self.instances[2]))
            if seconds
        ]
        return min(rates)


def measured_service(levels: Sequence[Mapping[str, Any]], models: Mapping[str, Any]) -> Service:
    """Return the server of a sweep's levels of the ensemble, requests of one image each.

    Args:
        levels: of a closed loop (`mode` "concurrency"), one of them with one request at a time, each with `value`,
            `reading` and `steps` as `codetr bench server` records them.
        models: its description of the models measured.

    Raises:
        CodetrError: the levels do not hold what is needed.
    """
    known = {}
    for level in levels:
        if level["model"] == ENSEMBLE and level["mode"] == "concurrency" and level["reading"] and level["steps"]:
            if level["batch"] != 1:
                raise CodetrError(f"a level has requests of {level['batch']} images: expected a sweep with batch 1")
            known[level["value"]] = level
    if 1 not in known or DETECTOR not in models:
        raise CodetrError(
            f"the sweep has no level of {ENSEMBLE} at concurrency 1, or does not describe {DETECTOR}; run "
            "`codetr bench server` for both models, concurrency 1 among others"
        )
    alone = known[1]
    steps = {model: _mean(known.values(), model) for model in INSTANCES}
    max_batch = max(1, int(models[DETECTOR]["max_batch_size"]))
    per_batch, per_image = _batches(list(known.values()), max_batch)
    percentiles = [alone["reading"][f"p{each}"] / 1e3 for each in _PERCENTILES]
    at_work = sum(_step_seconds(alone, model) for model in INSTANCES)
    return Service(
        preprocess=steps[PREPROCESS],
        batch_seconds=per_batch,
        image_seconds=per_image,
        max_batch=max_batch,
        postprocess=steps[POSTPROCESS],
        around=max(0.0, percentiles[0] - at_work),
        beyond=tuple(each - percentiles[0] for each in percentiles),
        instances=tuple(_instances(models, model) for model in INSTANCES),  # type: ignore[arg-type]
    )


def _step_seconds(level: Mapping[str, Any], model: str) -> float:
    step = level["steps"].get(model)
    if step is None:
        raise CodetrError(f"the sweep has no times of {model}: was the server's statistics endpoint shut?")
    return float(step["compute_input"] + step["compute_infer"] + step["compute_output"]) / 1e3


def _mean(levels: Any, model: str) -> float:
    """Return the mean seconds of a step over all levels, weighted by their requests."""
    pairs = [(_step_seconds(level, model), level["steps"][model]["requests"]) for level in levels]
    return float(np.average([each for each, _ in pairs], weights=[count for _, count in pairs]))


def _batches(levels: Sequence[Mapping[str, Any]], max_batch: int) -> tuple[float, float]:
    """Return what a batch takes and what each image in it takes: a line through the levels' mean batches."""
    sizes = [float(level["steps"][DETECTOR]["batch"]) for level in levels]
    seconds = [_step_seconds(level, DETECTOR) for level in levels]
    mean = _mean(levels, DETECTOR)
    if max_batch == 1:
        return mean, 0.0
    if max(sizes) - min(sizes) < _BATCH_SPREAD:
        raise CodetrError(
            f"the detector takes batches of {max_batch}, but those measured were of {min(sizes):.1f} to "
            f"{max(sizes):.1f} images: add levels with more requests at a time"
        )
    weights = [level["steps"][DETECTOR]["requests"] ** 0.5 for level in levels]
    slope, base = np.polyfit(sizes, seconds, 1, w=weights)
    if slope < 0:  # no slower with more images
        return mean, 0.0
    return max(0.0, float(base)), float(slope)


def _instances(models: Mapping[str, Any], model: str) -> int:
    groups = models.get(model, {}).get("instance_group") or []
    return sum(int(group["count"]) for group in groups) or INSTANCES[model]
