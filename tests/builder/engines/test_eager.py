import numpy as np
import pytest
import torch

from builder import random_detector
from builder.engines.eager import EagerDetector
from model_repository.torch_runner import float32_products
from tests.smallest import SMALLEST

IMAGES, SIZES = np.full((2, 64, 96, 3), 200, np.uint8), np.array([[64, 96], [32, 96]], np.int32)


@pytest.fixture(scope="module")
def detector():
    return random_detector(SMALLEST)


def test_it_answers_as_the_detector(detector):
    eager = EagerDetector(detector)
    with torch.inference_mode():
        expected = detector(torch.from_numpy(IMAGES), torch.from_numpy(SIZES))
    for whole, prepared, output in zip(expected, eager.prepare(IMAGES, SIZES)(), eager(IMAGES, SIZES), strict=True):
        assert prepared.is_inference()
        np.testing.assert_array_equal(prepared.numpy(), whole.numpy())
        np.testing.assert_array_equal(output, whole.numpy())
    assert eager.device == "cpu"


@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_as_it_was_told_whatever_it_was(detector, monkeypatch, tf32):
    seen = []
    monkeypatch.setattr(
        detector, "forward", lambda *inputs: seen.append(torch.backends.cudnn.allow_tf32) or [torch.zeros(1)] * 3
    )
    with float32_products(not tf32):
        EagerDetector(detector, tf32)(IMAGES, SIZES)
        assert torch.backends.cudnn.allow_tf32 is not tf32
    assert seen == [tf32]
