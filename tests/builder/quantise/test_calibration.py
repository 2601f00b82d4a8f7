import numpy as np
import pytest
import torch

from builder.engines import EngineError
from builder.quantise.calibration import BINS, Histogram, Range, calibrate
from tests.toy_family import SMALL, ToyDetector


def seen(*tensors):
    histogram = Histogram()
    for tensor in tensors:
        histogram.add(tensor)
    return histogram


def normal(count=200_000, seed=0):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_the_extremes_are_exact_and_hold_zero():
    assert seen(torch.tensor([1.5, 2.5]), torch.tensor([0.7])).range("max") == Range(0.0, 2.5)
    assert seen(torch.tensor([-3.0, -1.0])).range("max") == Range(-3.0, 0.0)


def test_counts_stay_right_while_the_range_widens():
    values = normal()
    at_once = seen(torch.cat([torch.tensor([64.0]), values]))
    slowly = seen(values[:10] / 8, torch.tensor([1.0]), torch.cat([torch.tensor([64.0]), values]))
    assert 64 <= slowly.limit < 128
    assert slowly.counts.sum() == len(values) + 12
    centres = (np.arange(BINS) + 0.5) / BINS * 2 - 1
    for histogram in (at_once, slowly):
        spread = np.sqrt((histogram.counts * (centres * histogram.limit) ** 2).sum() / histogram.counts.sum())
        assert spread == pytest.approx(float(torch.cat([torch.tensor([64.0]), values]).std()), rel=0.01)


def test_a_percentile_cuts_single_values_far_out():
    values = torch.cat([normal(), torch.tensor([500.0, -300.0])])
    low, high = seen(values).range("percentile")
    assert -5 < low < -3
    assert 3 < high < 5
    assert seen(values).range("max") == Range(-300.0, 500.0)


def test_entropy_cuts_a_long_tail_and_little_of_none():
    spread = torch.linspace(-1, 1, 100_001)
    assert seen(spread).range("entropy").high > 0.95
    tail = torch.cat([normal(), normal(200, 1) * 30])
    histogram = seen(tail)
    assert 2 < histogram.range("entropy").high < 0.5 * histogram.high


@pytest.mark.parametrize("method", ["max", "percentile", "entropy"])
def test_what_is_zero_throughout_has_a_range(method):
    assert seen(torch.zeros(100)).range(method) == Range(0.0, 0.0)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_no_range_reaches_beyond_what_was_seen(method):
    low, high = seen(torch.linspace(0.5, 3.7, 10_000)).range(method)
    assert low == 0.0
    assert 3.0 < high <= 3.7001


def pictures(count):
    images = np.random.default_rng(0).integers(0, 256, (count, 64, 96, 3), dtype=np.uint8)
    return [(images[i : i + 1], np.array([[64, 96]], np.int32)) for i in range(count)]


def test_inputs_and_outputs_of_layers_are_observed_on_every_picture():
    detector, batches = ToyDetector(SMALL), pictures(2)
    of_input, of_output = calibrate(detector, {"classify": detector.classify}, batches)["classify"]
    assert of_input.counts.sum() == 2 * 3 * 64 * 96
    assert of_input.high == pytest.approx(max(images.max() for images, _ in batches) / 255)
    assert of_output.counts.sum() == 2 * 3 * 4 * 6
    assert not detector.classify._forward_hooks


def test_a_layer_that_is_not_called_is_named():
    detector = ToyDetector(SMALL)
    layers = {"classify": detector.classify, "spare": torch.nn.Linear(2, 2)}
    with pytest.raises(EngineError, match="1 layers were not called on the pictures, among them spare"):
        calibrate(detector, layers, pictures(1))


def test_no_picture_is_an_error():
    detector = ToyDetector(SMALL)
    with pytest.raises(EngineError, match="no picture to calibrate on"):
        calibrate(detector, {"classify": detector.classify}, [])


def test_values_that_are_not_finite_are_an_error_that_names_the_layer():
    detector = ToyDetector(SMALL)
    detector.classify.weight.data[0] = float("nan")
    with pytest.raises(EngineError, match="the layer classify has values that are NaN or infinite"):
        calibrate(detector, {"classify": detector.classify}, pictures(1))
