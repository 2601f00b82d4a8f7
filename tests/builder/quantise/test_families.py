"""Detectors of every family with all groups in INT8: as engines of ONNX Runtime they answer as their rounding says."""

import numpy as np
import onnx
import pytest

from builder import load_detector
from builder.engines.eager import EagerDetector
from builder.engines.kinds import KINDS
from builder.pipeline.export import InputSpec, export_detector
from builder.quantise.groups import groups_of
from builder.quantise.recipe import Calibrated, Recipe, calibration_pictures, quantised
from tests import shallow

SPEC = InputSpec(96, 128, 2)


def co_dino(shallow_config, checkpoint):
    return load_detector(shallow_config, checkpoint)


def rtdetrv2(*_):
    return load_detector(*shallow.rtdetrv2())


def detr(*_):
    return load_detector(*shallow.detr())


@pytest.fixture(
    params=[
        pytest.param(co_dino, id="co_dino", marks=pytest.mark.slow),
        pytest.param(rtdetrv2, id="rtdetrv2", marks=pytest.mark.slow),
        pytest.param(detr, id="detr"),  # whose boolean masks other converters stopped at
    ]
)
def detector(request, shallow_config, checkpoint):
    return request.param(shallow_config, checkpoint).deploy()


def test_all_groups_of_a_family_become_integer_products(detector, tmp_path):
    kind, recipe = KINDS["onnx"], Recipe(count=2, method="max")
    words = tuple(groups_of(detector))
    assert len(words) >= 3
    pictures = calibration_pictures(recipe, (), SPEC, detector.variant.rules.pixels)
    quantisation = Calibrated(detector, "int8", words, recipe, pictures).quantisation(words)
    twin = quantised(detector, quantisation, kind)
    built = kind.module.build(export_detector(twin, SPEC), tmp_path / "model.onnx", None)
    stored = [tensor for tensor in onnx.load(built.file).graph.initializer if len(tensor.dims) > 1]
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in stored) == len(quantisation.ranges)
    run = kind.module.load(built.file, SPEC, "cpu", None)
    exact, rounded, actual = (
        each(*pictures[:2]).scores for each in (EagerDetector(detector), EagerDetector(twin), run)
    )
    # ONNX Runtime rounds less often, after a ReLU once: what is left is no farther from float32 than the twin.
    assert np.abs(actual - exact).mean() <= 1.5 * np.abs(rounded - exact).mean()
