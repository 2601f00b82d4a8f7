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
    keys = [
        (name, interface.PLUGIN_VERSION, interface.PLUGIN_NAMESPACE)
        for name in (interface.PLUGIN_NAME, interface.WINDOW_PLUGIN_NAME)
    ]
    creators, converters = {key: Creator() for key in keys}, {}
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


def convert(stand_ins, *args, operator="ms_deform_attn", **kwargs):
    context = SimpleNamespace(net=Network())
    converter = getattr(stand_ins.converter, f"convert_{operator}")
    output = converter(context, None, args, kwargs, "attention")
    (layer,) = context.net.layers
    return output, layer


def test_converters_are_registered_for_the_operators_and_dynamic_shapes(stand_ins):
    converter, dynamic = stand_ins.converter, {"supports_dynamic_shapes": True}
    assert stand_ins.converters == {
        torch.ops.codetr.ms_deform_attn.default: (converter.convert_ms_deform_attn, dynamic),
        torch.ops.codetr.window_attention.default: (converter.convert_window_attention, dynamic),
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
    deformable, window = stand_ins.creators.values()
    assert deformable.made == ("attention", [(interface.SPATIAL_SHAPES_FIELD, SIZES, "int32", "INT32")], "build")
    assert not hasattr(window, "made")


@pytest.mark.parametrize(
    ("bias", "tensors"),
    [
        pytest.param("b", [("q", "qkv"), ("t", "bias_table"), ("b", "qkv_bias")], id="a bias"),
        pytest.param(None, [("q", "qkv"), ("t", "bias_table")], id="no bias"),
    ],
)
def test_window_attention_has_its_bias_last_and_its_numbers_as_fields(stand_ins, bias, tensors):
    output, layer = convert(stand_ins, "q", bias, "t", 12, 6, operator="window_attention")
    assert (output, layer.name, layer.plugin) == ("output0", "attention", "the plugin")
    assert layer.inputs == [(tensor, f"attention_{name}") for tensor, name in tensors]
    deformable, window = stand_ins.creators.values()
    fields = [(interface.WINDOW_SIZE_FIELD, [12], "int32", "INT32"), (interface.SHIFT_FIELD, [6], "int32", "INT32")]
    assert window.made == ("attention", fields, "build")
    assert not hasattr(deformable, "made")


def test_missing_plugin_is_an_error_that_says_what_to_do(stand_ins):
    stand_ins.creators.clear()
    with pytest.raises(stand_ins.converter.TensorRTPluginError, match="make plugin"):
        convert(stand_ins, "v", "r", "o", "l", SIZES)


def test_refused_sizes_are_an_error(stand_ins):
    with pytest.raises(stand_ins.converter.TensorRTPluginError, match=r"refused spatial_shapes \[0, 6\]"):
        convert(stand_ins, "v", "r", "o", "l", [0, 6])


def test_a_library_without_one_of_the_plugins_is_told(stand_ins, monkeypatch):
    monkeypatch.setattr(stand_ins.converter.ctypes, "CDLL", lambda library, mode: None)
    stand_ins.converter.load_plugin("libcodetr_plugin.so")
    stand_ins.creators.pop((interface.WINDOW_PLUGIN_NAME, interface.PLUGIN_VERSION, interface.PLUGIN_NAMESPACE))
    with pytest.raises(stand_ins.converter.TensorRTPluginError, match="no plugin CodetrWindowAttention version 1"):
        stand_ins.converter.load_plugin("libcodetr_plugin.so")


def test_library_that_cannot_be_loaded_is_named(stand_ins, tmp_path):
    with pytest.raises(stand_ins.converter.TensorRTPluginError, match=r"missing\.so"):
        stand_ins.converter.load_plugin(tmp_path / "missing.so")
