from __future__ import annotations

from typing import Any

import pytest

from model_repository import TEMPLATES
from perf.capacity.service import INSTANCES, measured_service
from serving.contract import DETECTOR, POSTPROCESS, PREPROCESS
from serving.errors import CodetrError
from serving.model_config import instance_count, read_model_config

MODELS = {DETECTOR: {"max_batch_size": 4, "instance_group": [{"count": 1}]}}


def step(milliseconds: float, batch: float = 1.0, requests: int = 100) -> dict[str, Any]:
    """A step's times, of which the queue's is not the step's own."""
    parts = {"compute_input": 0.1, "compute_infer": milliseconds - 0.3, "compute_output": 0.2}
    return {"queue": 77.0, **parts, "batch": batch, "requests": requests}


def level(users: int, mean_batch: float, detector: float, **other: Any) -> dict[str, Any]:
    steps = {PREPROCESS: step(10), DETECTOR: step(detector, mean_batch), POSTPROCESS: step(2)}
    reading = {"p50": 45.0, "p90": 46.0, "p95": 48.0, "p99": 60.0}
    usual = {"model": "codetr", "mode": "concurrency", "value": users, "batch": 1, "reading": reading, "steps": steps}
    return {**usual, **other}


LEVELS = [level(1, 1.0, 30.0), level(4, 2.0, 40.0), level(16, 4.0, 60.0)]


def test_a_server_is_what_its_steps_took() -> None:
    service = measured_service(LEVELS, MODELS)
    assert service.preprocess == pytest.approx(0.010)
    assert service.postprocess == pytest.approx(0.002)
    assert service.batch_seconds == pytest.approx(0.020)
    assert service.image_seconds == pytest.approx(0.010)
    assert service.max_batch == 4
    assert service.around == pytest.approx(0.045 - 0.042)
    assert service.beyond == pytest.approx((0.0, 0.001, 0.003, 0.015))
    assert service.highest_rate == pytest.approx(4 / 0.060)


def test_other_levels_of_a_sweep_do_not_count() -> None:
    others = [level(8, 9.0, 900.0, mode="rate"), level(2, 9.0, 900.0, model=DETECTOR), level(3, 1, 1, reading=None)]
    assert measured_service([*LEVELS, *others], MODELS) == measured_service(LEVELS, MODELS)


def test_without_batches_the_mean_of_all_levels_counts() -> None:
    service = measured_service([level(1, 1.0, 30.0), level(8, 1.0, 34.0)], {DETECTOR: {"max_batch_size": 1}})
    assert (service.batch_seconds, service.image_seconds) == (pytest.approx(0.032), 0.0)


def test_instances_are_the_sweeps_or_the_templates() -> None:
    described = {**MODELS, PREPROCESS: {"instance_group": [{"count": 2}, {"count": 5}]}}
    assert measured_service(LEVELS, described).instances == (7, 1, 2)
    for model in (PREPROCESS, POSTPROCESS):
        assert instance_count(read_model_config(TEMPLATES / model / "config.pbtxt")) == INSTANCES[model]


@pytest.mark.parametrize(
    ("levels", "models", "message"),
    [
        pytest.param(LEVELS[1:], MODELS, "no level of codetr at concurrency 1", id="none alone"),
        pytest.param(LEVELS, {}, "does not describe codetr_detector", id="no detector"),
        pytest.param(LEVELS[:1], MODELS, "takes batches of 4, but those measured were of 1.0 to 1.0", id="no batches"),
        pytest.param([level(1, 1, 30, batch=2)], MODELS, "requests of 2 images", id="several images in a request"),
        pytest.param(
            [level(1, 1, 30, steps={PREPROCESS: step(1)})], MODELS, "no times of codetr_detector", id="no statistics"
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_said(levels: list[Any], models: dict[str, Any], message: str) -> None:
    with pytest.raises(CodetrError, match=message):
        measured_service(levels, models)
