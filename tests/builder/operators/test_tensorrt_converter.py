"""The converter against stand-ins for tensorrt and torch_tensorrt, which a machine without a GPU cannot install."""

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from builder.operators import interface

SIZES = [4, 6, 2, 3]


class Creator:
    def create_plugin(self, name, fields, phase):
        self.made = (
            name,
            [(field.name, field.data.tolist(), str(field.data.dtype), field.kind) for field in fields],
            phase,
        )
        return None if fields[0].data.min() < 1 else "the plugin"


class Network:
    def __init__(self):
        self.layers = []

    def add_plugin_v3(self, inputs, shape_inputs, plugin):
        layer = SimpleNamespace(
            inputs=inputs, shape_inputs=shape_inputs, plugin=plugin, get_output=lambda i: f"output{i}"
        )
        self.layers.append(layer)
        return layer


@pytest.fixture
def stand_ins(monkeypatch):
    """Put the stand-ins in place; returns the registry's creators and the converters that were registered."""
    key = (interface.PLUGIN_NAME, interface.PLUGIN_VERSION, interface.PLUGIN_NAMESPACE)
    creators, converters = {key: Creator()}, {}
    tensorrt: Any = ModuleType("tensorrt")
    tensorrt.PluginField = lambda name, data, kind: SimpleNamespace(name=name, data=data, kind=kind)
    tensorrt.PluginFieldType = SimpleNamespace(INT32="INT32")
    tensorrt.PluginFieldCollection = list
    tensorrt.TensorRTPhase = SimpleNamespace(BUILD="build")
    tensorrt.get_plugin_registry = lambda: SimpleNamespace(get_creator=lambda *key: creators.get(key))
    conversion: Any = ModuleType("torch_tensorrt.dynamo.conversion")
    conversion.ConversionContext = object
    conversion.dynamo_tensorrt_converter = lambda target, **options: (
        lambda function: converters.setdefault(target, (function, options))[0]
    )
    utilities: Any = ModuleType("torch_tensorrt.dynamo.conversion.converter_utils")
    utilities.get_trt_tensor = lambda ctx, tensor, name: (tensor, name)
    modules = {
        "tensorrt": tensorrt,
        "torch_tensorrt": ModuleType("torch_tensorrt"),
        "torch_tensorrt.dynamo": ModuleType("torch_tensorrt.dynamo"),
        "torch_tensorrt.dynamo.conversion": conversion,
        "torch_tensorrt.dynamo.conversion.converter_utils": utilities,
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "builder.operators.tensorrt_converter", raising=False)
    converter = importlib.import_module("builder.operators.tensorrt_converter")
    yield SimpleNamespace(converter=converter, creators=creators, converters=converters)
    sys.modules.pop("builder.operators.tensorrt_converter", None)


def convert(stand_ins, *args, **kwargs):
    context = SimpleNamespace(net=Network())
    output = stand_ins.converter.convert_ms_deform_attn(context, None, args, kwargs, "attention")
    (layer,) = context.net.layers
    return output, layer


def test_converter_is_registered_for_the_operator_and_dynamic_shapes(stand_ins):
    assert stand_ins.converters == {
        torch.ops.codetr.ms_deform_attn.default: (
            stand_ins.converter.convert_ms_deform_attn,
            {"supports_dynamic_shapes": True},
        )
    }


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        pytest.param(("v", "r", "o", "l", SIZES), {}, id="no mask"),
        pytest.param(("v", "r", "o", "l", SIZES, None), {}, id="mask None"),
        pytest.param(("v", "r", "o", "l", SIZES, "m"), {}, id="mask by position"),
        pytest.param(("v", "r", "o", "l", SIZES), {"valid_shapes": "m"}, id="mask by name"),
    ],
)
def test_inputs_come_in_the_plugins_order(stand_ins, args, kwargs):
    output, layer = convert(stand_ins, *args, **kwargs)
    assert output == "output0"
    assert [tensor for tensor, _ in layer.inputs] == [
        "v",
        "r",
        "o",
        "l",
        *(["m"] if "m" in (*args, *kwargs.values()) else []),
    ]
    names = [f"attention_{name}" for name in interface.INPUT_NAMES[: len(layer.inputs)]]
    assert [name for _, name in layer.inputs] == names
    assert (layer.shape_inputs, layer.plugin, layer.name) == ([], "the plugin", "attention")


def test_level_sizes_become_the_plugins_field(stand_ins):
    convert(stand_ins, "v", "r", "o", "l", SIZES)
    (creator,) = stand_ins.creators.values()
    assert creator.made == ("attention", [(interface.SPATIAL_SHAPES_FIELD, SIZES, "int32", "INT32")], "build")


def test_missing_plugin_is_an_error_that_says_what_to_do(stand_ins):
    stand_ins.creators.clear()
    with pytest.raises(stand_ins.converter.TensorRTPluginError, match="make plugin"):
        convert(stand_ins, "v", "r", "o", "l", SIZES)


def test_refused_sizes_are_an_error(stand_ins):
    with pytest.raises(stand_ins.converter.TensorRTPluginError, match=r"refused spatial_shapes \[0, 6\]"):
        convert(stand_ins, "v", "r", "o", "l", [0, 6])


def test_library_that_cannot_be_loaded_is_named(stand_ins, tmp_path):
    with pytest.raises(stand_ins.converter.TensorRTPluginError, match=r"missing\.so"):
        stand_ins.converter.load_plugin(tmp_path / "missing.so")
