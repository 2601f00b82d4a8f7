import copy
import platform
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import serving.integers
from builder.engines import onnx as onnx_engine
from builder.engines.onnx import write
from builder.pipeline.export import InputSpec, export_detector
from builder.quantise.calibration import Range, Ranges
from builder.quantise.integers import round_after_relu, store_biases, store_integers
from builder.quantise.layers import replace_layers
from serving.integers import set_exact_integers

SIZES = np.array([[32, 32]], np.int32)


class Small(nn.Module):
    """Convolutions with a ReLU between, one of whose outputs is added to a later one, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, images, image_sizes):
        x = torch.relu(self.first(images.float().permute(0, 3, 1, 2) / 255))
        kept = torch.relu(self.second(x))
        x = kept + self.third(kept)
        return self.last(x.flatten(2).transpose(1, 2)), x, image_sizes


@pytest.fixture(scope="module")
def unquantised():
    torch.manual_seed(0)
    return Small().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def quantised(unquantised):
    module = copy.deepcopy(unquantised)
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    # nothing below zero goes into a layer after a ReLU; coarse outputs show how often one is rounded
    ranges = {name: Ranges(Range(0.0, 2.0), Range(-6.0, 6.0)) for name in layers}
    ranges["last"] = Ranges(Range(-2.0, 3.0), Range(-1, 1))
    replace_layers(module, onnx_engine.quantised_layers(layers, ranges, "int8"))
    return module


@pytest.fixture(scope="module")
def model(quantised, tmp_path_factory):
    path = tmp_path_factory.mktemp("integers") / "model.onnx"
    write(export_detector(quantised, InputSpec(32, 32)), path)
    return onnx.load(path)


def run(model, images, tmp_path, options=None):
    """Return the first output, and the operators that ONNX Runtime runs."""
    options = options or onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # that the file is of this machine
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (output,) = session.run(["boxes"], {"images": images, "image_sizes": SIZES})
    return output, Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)


def copied(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def test_weights_are_kept_as_integers_and_the_answer_stays(model, quantised, images, tmp_path):
    stored = copied(model)
    store_integers(stored)
    store_biases(stored)
    onnx.checker.check_model(stored, full_check=True)
    assert len(stored.SerializeToString()) < len(model.SerializeToString())
    types = Counter(tensor.data_type for tensor in stored.graph.initializer if len(tensor.dims) > 1)
    assert types == {onnx.TensorProto.INT8: 4}
    assert "Transpose" not in [node.op_type for node in stored.graph.node][-3:]
    expected = quantised(torch.from_numpy(images), torch.from_numpy(SIZES))[0].numpy()
    actual, ran = run(stored, images, tmp_path)
    assert np.abs(actual - expected).max() < 0.02 * np.abs(expected).max()
    assert ran["QLinearConv"] == 3
    assert (ran["QGemm"], ran["MatMul"] + ran["Gemm"]) == (1, 0), "the linear layer is an integer product"
    _, before = run(model, images, tmp_path)
    assert before["QGemm"] == 0, "which it is not with a Transpose between and a bias apart"


def test_an_output_is_rounded_after_its_relu_where_nothing_else_reads_it(model, unquantised, images, tmp_path):
    revised = copied(model)
    round_after_relu(revised)
    onnx.checker.check_model(revised, full_check=True)
    before = Counter(node.op_type for node in model.graph.node)
    after = Counter(node.op_type for node in revised.graph.node)
    # of two ReLUs one is also added to something, which reads the rounded output
    assert before["QuantizeLinear"] - after["QuantizeLinear"] == 1
    twice, _ = run(model, images, tmp_path)
    once, _ = run(revised, images, tmp_path)
    exact = unquantised(torch.from_numpy(images), torch.from_numpy(SIZES))[0].numpy()
    assert np.abs(once - exact).mean() < np.abs(twice - exact).mean()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86 has the products that are cut")
def test_weights_become_unsigned_and_the_answer_stays_where_products_would_be_cut(model, images, tmp_path, monkeypatch):
    stored = copied(model)
    store_integers(stored)
    store_biases(stored)
    monkeypatch.setattr(serving.integers, "cpu", lambda: {"features": ["avx2"]})
    options = onnxruntime.SessionOptions()
    set_exact_integers(options)
    signed, _ = run(stored, images, tmp_path)
    unsigned, ran = run(stored, images, tmp_path, options)
    assert (ran["QLinearConv"], ran["QGemm"]) == (3, 1)
    types = {t.data_type for t in onnx.load(tmp_path / "optimised.onnx").graph.initializer if len(t.dims) > 1}
    assert types == {onnx.TensorProto.UINT8}
    np.testing.assert_allclose(unsigned, signed, atol=1e-6)


class Twice(nn.Module):
    """A linear layer that is called twice, as a decoder calls the head of its reference points."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, images, image_sizes):
        x = self.layer(images.float().flatten(1, 2) / 255)
        return self.layer(torch.relu(x)), images, image_sizes


def test_a_layer_that_is_called_twice_is_two_integer_products(images, tmp_path):
    torch.manual_seed(0)
    module = Twice().eval().requires_grad_(False)
    ranges = {"layer": Ranges(Range(0.0, 2.0), Range(-1.0, 1.0))}
    replace_layers(module, onnx_engine.quantised_layers({"layer": module.layer}, ranges, "int8"))
    onnx_engine.build(export_detector(module, InputSpec(32, 32)), tmp_path / "model.onnx")
    expected = module(torch.from_numpy(images), torch.from_numpy(SIZES))[0].numpy()
    actual, ran = run(onnx.load(tmp_path / "model.onnx"), images, tmp_path)
    assert np.abs(actual - expected).max() < 0.02 * np.abs(expected).max()
    assert (ran["QGemm"] + ran["QLinearMatMul"], ran["MatMul"] + ran["Gemm"]) == (2, 0)
