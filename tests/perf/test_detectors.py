from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from builder.checkpoint import random_detector
from perf.accuracy.detectors import pytorch_detect
from serving.rules import Suppression
from tests.smallest import SMALLEST


@pytest.fixture(scope="module")
def image() -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("rule", "count"), [(Suppression("none"), SMALLEST.max_detections), (Suppression(score_threshold=1), 0)]
)
def test_the_variants_suppression_decides(
    monkeypatch: pytest.MonkeyPatch, image: bytes, rule: Suppression, count: int
) -> None:
    variant = replace(SMALLEST, input_size=(64, 96), suppression=rule)
    monkeypatch.setattr("builder.checkpoint.load_detector", lambda *args: random_detector(variant, 0))
    detect, _ = pytorch_detect("any", Path("any"), "float32", "cpu")
    assert len(detect(image)) == count
