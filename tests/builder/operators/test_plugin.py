"""The plugin's names in Python are those of its C++ source."""

import re
from pathlib import Path

import pytest

import plugin_src
from builder.operators import plugin


def source(name):
    return (Path(plugin_src.__path__[0]) / name).read_text(encoding="utf-8")


def test_the_creator_has_these_names():
    constants = dict(re.findall(r'constexpr char const\* (k\w+) = "(.*)";', source("tensorrt_layer.h")))
    assert constants == {
        "kPluginName": plugin.NAME,
        "kPluginVersion": plugin.VERSION,
        "kPluginNamespace": plugin.NAMESPACE,
        "kSpatialShapesField": plugin.SPATIAL_SHAPES_FIELD,
    }


@pytest.mark.parametrize("file", ["tensorrt_plugin_v2.cpp", "tensorrt_plugin_v3.cpp"])
def test_the_creators_list_holds_one_int32_field(file):
    constructor = re.search(r"MsDeformAttnCreator\(\) \{(.*?)\n\}", source(file), re.DOTALL)[1]
    assert re.findall(r"field_ = \{(\w+), nullptr, nvinfer1::PluginFieldType::(\w+), 0\}", constructor) == [
        ("kSpatialShapesField", "kINT32")
    ]
    assert "fields_ = {1, &field_};" in constructor


def test_the_inputs_come_in_the_plugins_order():
    code = source("tensorrt_layer.cpp")
    names = re.search(r"kNames\[\] = \{(.*?)\};", code)[1]
    assert tuple(re.findall(r'"(\w+)"', names)) == plugin.INPUT_NAMES
    positions = re.search(r"enum Input : int32_t \{(.*?)\};", code)[1]
    snake_case = [re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in re.findall(r"k(\w+)", positions)]
    assert tuple(snake_case) == plugin.INPUT_NAMES
