from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
import torch

from builder.engines import EngineError
from builder.engines.eager import EagerDetector
from builder.families import FAMILIES
from builder.pipeline.build import BuildOptions, build_repository
from builder.pipeline.export import InputSpec
from builder.pipeline.samples import Samples, drawn_samples
from builder.pipeline.verify import LIMITS, Limits
from builder.quantise import trials
from builder.quantise.recipe import Recipe
from builder.quantise.trials import PICTURES, annotated, ap_of, search_samples
from demo.shapes import CLASS_NAMES
from serving.manifest import read_manifest
from tests.toy_family import SMALL, TOY, ToyDetector, toy_weights

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


def test_a_search_of_real_engines_ends_in_a_repository_of_the_fastest(toy, monkeypatch, tmp_path, samples):
    torch.save(toy_weights(), tmp_path / "toy.pth")
    (tmp_path / "pictures").mkdir()
    for name, image in zip(samples.names, samples.images, strict=True):
        cv2.imwrite(str(tmp_path / "pictures" / f"{name}.png"), image)
    times = iter([10.0, 8.0])
    monkeypatch.setattr(trials, "processor_milliseconds", lambda *arguments: next(times))
    monkeypatch.setitem(LIMITS, "int8", Limits(0.5, 1.0, 0.0))
    recipe = Recipe(("classify",), images=tmp_path / "pictures", search=True, ap_budget=0.2)
    options = BuildOptions(
        SMALL, SPEC, tmp_path / "toy.pth", precision="int8", recipe=recipe, verify_images=tmp_path / "pictures"
    )
    build_repository(options, tmp_path / "repository")
    found = read_manifest(tmp_path / "repository")["quantisation"]["search"]
    plain, chosen = found["trials"]
    assert (plain["loss"], plain["ms"], plain["groups"]) == (pytest.approx(0, abs=1e-6), 10.0, [])
    assert (chosen["layers"], chosen["ms"], found["best"], found["measured"]) == (
        1,
        8.0,
        1,
        "float32's own detections on 3 pictures",
    )
    assert 0 < abs(chosen["loss"]) < 0.2, "it is measured, and its engine is another"
    weights = onnx.load(tmp_path / "repository" / "codetr_detector" / "1" / "model.onnx").graph.initializer
    assert [tensor.data_type for tensor in weights if len(tensor.dims) == 4] == [onnx.TensorProto.INT8]


def test_onnx_engines_are_timed_by_the_processor_time_of_one_thread(monkeypatch):
    now = iter(np.cumsum([0.0, *[0.009, 9.0] * 5, *[0.001, 9.0] * 15]))
    threads = []

    def load(file, threads_of_it):
        threads.append(threads_of_it)
        return SimpleNamespace(prepare=lambda images, sizes: lambda: None)

    monkeypatch.setattr(trials, "time", SimpleNamespace(process_time=lambda: float(next(now))))
    monkeypatch.setattr("builder.engines.onnx.load_session", lambda file, threads: load(file, threads))
    assert trials.processor_milliseconds(Path("model.onnx"), None, None) == pytest.approx(1.0)
    assert threads == [1]
