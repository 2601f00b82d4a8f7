from types import SimpleNamespace

import numpy as np
import pytest
import torch

from builder.engines import EngineError
from builder.engines.eager import EagerDetector
from builder.families import FAMILIES
from builder.pipeline.export import InputSpec
from builder.pipeline.samples import Samples, drawn_samples
from builder.quantise import trials
from builder.quantise.trials import PICTURES, annotated, ap_of, search_samples
from demo.shapes import CLASS_NAMES
from tests.toy_family import SMALL, TOY, ToyDetector

SPEC = InputSpec(64, 96)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(FAMILIES, "toy", TOY)
    torch.manual_seed(0)
    detector = ToyDetector(SMALL).eval().requires_grad_(False)
    detector.classify.bias.data.fill_(1.0)  # sure of itself
    return detector


@pytest.fixture
def samples():
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (60, 90, 3), dtype=np.uint8) for _ in range(3)]
    return Samples(images, ["a", "b", "c"])


def test_pictures_without_annotations_are_judged_by_float32s_own_detections(toy, samples):
    judged, words = annotated(samples, toy, SPEC)
    assert words == "float32's own detections on 3 pictures"
    assert len(judged.truth.content["annotations"]) > 3
    assert ap_of(EagerDetector(toy), judged, SPEC, toy) == pytest.approx(1.0)
    other = ToyDetector(SMALL).eval().requires_grad_(False)
    assert ap_of(EagerDetector(other), judged, SPEC, toy) < 0.9


def test_a_detector_that_is_sure_of_nothing_cannot_judge(toy, samples):
    toy.classify.bias.data.fill_(-20.0)
    with pytest.raises(EngineError, match=r"finds nothing with a score of 0.3 on the 3 pictures"):
        annotated(samples, toy, SPEC)


def test_annotated_pictures_are_judged_by_their_annotations(toy):
    shapes = drawn_samples(1, 2, CLASS_NAMES)
    judged, words = annotated(shapes, toy, SPEC)
    assert judged is shapes
    assert words == "2 annotated pictures"


def test_a_search_without_pictures_draws_more_than_a_verification(samples):
    assert search_samples(samples, True, ()) is samples
    assert len(search_samples(samples, False, ()).images) == PICTURES


def test_the_time_of_an_engine_is_a_median_without_its_first_calls(monkeypatch):
    now = iter(np.cumsum([0.0, *[9.0, 9.0] * 3, *[0.001] * 200]))
    monkeypatch.setattr(trials, "time", SimpleNamespace(perf_counter=lambda: float(next(now))))
    monkeypatch.setattr(trials, "SECONDS", 30.0)
    engine = SimpleNamespace(device="cpu", prepare=lambda images, sizes: lambda: None)
    assert trials.milliseconds(engine, None, None) == pytest.approx(1.0)
