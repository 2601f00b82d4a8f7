"""The whole detector through torch_tensorrt's converters and TensorRT-RTX's compiler; nothing runs the engines.

torch_tensorrt and this project's PyTorch do not fit into one environment on a machine without a GPU, so these tests
have their own: rtx.py names its packages.
"""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from builder import load_detector, random_detector
from builder.operators import interface
from builder.pipeline.export import InputSpec
from builder.variants import get_variant
from tests.builder.engines.tensorrt import rtx

pytestmark = [
    pytest.mark.rtx,
    pytest.mark.skipif(not rtx.INSTALLED, reason="torch_tensorrt is not installed; rtx.py names the packages"),
    pytest.mark.filterwarnings("ignore"),
]
HEIGHT, WIDTH = 64, 96


def small_r50(precision):
    variant = replace(
        get_variant("co_dino_r50_12e"), embed_dim=64, num_heads=4, encoder_layers=1, decoder_layers=2,
        feedforward_dim=64, num_queries=50,
    )  # fmt: skip  # one replacement
    return random_detector(variant, 0, precision)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("backbone", ["swin", "r50"])
def test_detector_converts_and_compiles(golden_config, golden_weights, backbone, precision):
    detector = load_detector(golden_config, golden_weights, precision) if backbone == "swin" else small_r50(precision)
    interpreter = rtx.lower(detector, InputSpec(HEIGHT, WIDTH, max_batch_size=2))
    assert interpreter.validate_conversion() == set()
    network = rtx.convert(interpreter)
    inputs = {network.get_input(i).name: network.get_input(i).dtype.name for i in range(network.num_inputs)}
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    assert inputs == {"images": "UINT8", "image_sizes": "INT32"}
    assert [(tuple(tensor.shape), tensor.dtype.name) for tensor in outputs] == [
        ((-1, 300, 4), "FLOAT"),
        ((-1, 300), "FLOAT"),
        ((-1, 300), "INT32"),
    ]
    types = rtx.product_types(network)
    if precision == "float16":  # all but the three layers of each box head
        assert types.pop("FLOAT") == 3 * (detector.variant.decoder_layers + 1)
    assert set(types) == {{"float32": "FLOAT", "float16": "HALF"}[precision]}
    assert rtx.compile_network(interpreter) > 0


class PluginNetwork:
    """A network whose missing plugin layer is played by a constant; keeps what each call was given."""

    def __init__(self, network, make_constant):
        self._network, self._make_constant, self.calls = network, make_constant, []

    def __getattr__(self, name):
        return getattr(self._network, name)

    def add_plugin_v3(self, inputs, shape_inputs, plugin):
        self.calls.append(([(tuple(each.shape), each.dtype.name) for each in inputs], shape_inputs, plugin))
        (batch, _, heads, dim), queries = inputs[0].shape, inputs[2].shape[1]
        return self._make_constant((batch, queries, heads * dim), inputs[0].dtype)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_network_feeds_the_plugin_as_it_expects(golden_config, golden_weights, monkeypatch, precision):
    rtx.import_torch_tensorrt()
    import numpy as np
    import tensorrt

    from builder.operators import tensorrt_converter

    monkeypatch.setattr(tensorrt_converter, "make_plugin", lambda plugin, layer, fields: (plugin, fields))
    detector = load_detector(golden_config, golden_weights, precision)
    interpreter = rtx.lower(detector, InputSpec(HEIGHT, WIDTH), decompose=False)
    context = interpreter.ctx

    def constant(shape, dtype):
        zeros = np.zeros(shape, tensorrt.nptype(dtype))
        return context.net.add_constant(shape, tensorrt.Weights(zeros))

    context.net = network = PluginNetwork(context.net, constant)
    rtx.convert(interpreter)
    type_ = {"float32": "FLOAT", "float16": "HALF"}[precision]
    variant: Any = detector.variant
    heads, dim, points = variant.num_heads, variant.embed_dim // variant.num_heads, 4
    sizes = [16, 24, 8, 12, 4, 6, 2, 3, 1, 2]
    tokens = 16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2
    assert len(network.calls) == 4
    for (inputs, shape_inputs, plugin), (queries, coordinates) in zip(
        network.calls, [(tokens, 2)] * 2 + [(variant.num_queries, 4)] * 2, strict=True
    ):
        assert inputs == [
            ((1, tokens, heads, dim), type_),
            ((1, queries, 5, coordinates), "FLOAT"),
            ((1, queries, heads, 5, points, 2), type_),
            ((1, queries, heads, 5, points), type_),
            ((1, 5, 2), "INT32"),
        ]
        assert shape_inputs == []
        assert plugin == (interface.PLUGIN_NAME, {interface.SPATIAL_SHAPES_FIELD: sizes})


def test_stand_in_is_honest():
    """The recorder passes everything but the plugin to the real network."""
    network = PluginNetwork(SimpleNamespace(num_layers=7), None)
    assert network.num_layers == 7
