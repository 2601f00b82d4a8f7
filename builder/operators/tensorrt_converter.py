"""Converts `codetr::ms_deform_attn` and `codetr::window_attention` into the TensorRT plugins of `plugin_src`.

Importing this module imports torch_tensorrt and registers the converters: import it only where a TensorRT engine is
built. `load_plugin` must have registered the plugins' creators before a network is converted.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt
import torch
from torch.fx.node import Target
from torch_tensorrt.dynamo.conversion import ConversionContext, dynamo_tensorrt_converter
from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor

import builder.operators.ms_deform_attn
import builder.operators.window_attention  # noqa: F401  # both define their operators
from builder.operators import interface
from serving.errors import CodetrError

SPATIAL_SHAPES, VALID_SHAPES = 4, 5  # positions among the operator's arguments


class TensorRTPluginError(CodetrError):
    """The TensorRT plugin is missing or refused the operator's arguments."""


def load_plugin(library: Path) -> None:
    """Load the plugins' library, which registers their creators with TensorRT.

    Args:
        library: `libcodetr_plugin.so` of `make plugin`, built against this TensorRT's headers.

    Raises:
        TensorRTPluginError: the library cannot be loaded, or registered nothing.
    """
    try:
        ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_GLOBAL)
    except OSError as error:
        raise TensorRTPluginError(
            f"cannot load the TensorRT plugin {library}: {error}; build it with make plugin"
        ) from error
    for name in (interface.PLUGIN_NAME, interface.WINDOW_PLUGIN_NAME):
        find_creator(name)


def find_creator(name: str) -> Any:
    """Return a plugin's creator from TensorRT's registry.

    Raises:
        TensorRTPluginError: it is not registered.
    """
    version = interface.PLUGIN_VERSION
    creator = tensorrt.get_plugin_registry().get_creator(name, version, interface.PLUGIN_NAMESPACE)
    if creator is None:
        raise TensorRTPluginError(
            f"TensorRT knows no plugin {name} version {version}: build it with make plugin and load it first"
        )
    return creator


def make_plugin(plugin: str, layer: str, fields: Mapping[str, Sequence[int]]) -> Any:
    """Return a plugin object for a network that is being built.

    Args:
        plugin: its name.
        layer: name of the layer.
        fields: numbers of the plugin's fields by their names.

    Raises:
        TensorRTPluginError: the plugin is not registered, or refused the fields.
    """
    given = [
        tensorrt.PluginField(name, np.array(numbers, np.int32), tensorrt.PluginFieldType.INT32)
        for name, numbers in fields.items()
    ]
    collection = tensorrt.PluginFieldCollection(given)
    made = find_creator(plugin).create_plugin(layer, collection, tensorrt.TensorRTPhase.BUILD)
    if made is None:
        words = ", ".join(f"{name} {list(numbers)}" for name, numbers in fields.items())
        raise TensorRTPluginError(f"{plugin} refused {words}; TensorRT's log says why")
    return made


def add_plugin(
    ctx: ConversionContext, name: str, plugin: str, tensors: Mapping[str, Any], fields: Mapping[str, Sequence[int]]
) -> Any:
    """Add a plugin as one layer; return its output.

    Args:
        ctx: the network.
        name: of the layer.
        plugin: its name.
        tensors: its inputs, in its order.
        fields: as for `make_plugin`.

    Raises:
        TensorRTPluginError: as `make_plugin`, or the layer was refused.
    """
    inputs = [get_trt_tensor(ctx, tensor, f"{name}_{input_name}") for input_name, tensor in tensors.items()]
    layer = ctx.net.add_plugin_v3(inputs, [], make_plugin(plugin, name, fields))
    if layer is None:
        raise TensorRTPluginError(f"TensorRT could not add {plugin} as layer {name}; its log says why")
    layer.name = name
    return layer.get_output(0)


@dynamo_tensorrt_converter(  # type: ignore[untyped-decorator]  # torch_tensorrt is not installed where mypy runs
    torch.ops.codetr.ms_deform_attn.default, supports_dynamic_shapes=True
)
def convert_ms_deform_attn(
    ctx: ConversionContext, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> Any:
    """Add the plugin as one layer; the arguments are those of `builder.operators.ms_deform_attn.ms_deform_attn`."""
    valid_shapes = args[VALID_SHAPES] if len(args) > VALID_SHAPES else kwargs.get("valid_shapes")
    tensors = [*args[:SPATIAL_SHAPES], *([] if valid_shapes is None else [valid_shapes])]
    named = dict(zip(interface.INPUT_NAMES, tensors, strict=False))
    return add_plugin(ctx, name, interface.PLUGIN_NAME, named, {interface.SPATIAL_SHAPES_FIELD: args[SPATIAL_SHAPES]})


@dynamo_tensorrt_converter(  # type: ignore[untyped-decorator]  # as above
    torch.ops.codetr.window_attention.default, supports_dynamic_shapes=True
)
def convert_window_attention(
    ctx: ConversionContext, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> Any:
    """Add the plugin as one layer; the arguments are those of `builder.operators.window_attention.window_attention`."""
    qkv, qkv_bias, bias_table, window_size, shift = args
    tensors = [qkv, bias_table, *([] if qkv_bias is None else [qkv_bias])]
    named = dict(zip(interface.WINDOW_INPUT_NAMES, tensors, strict=False))
    fields = {interface.WINDOW_SIZE_FIELD: [window_size], interface.SHIFT_FIELD: [shift]}
    return add_plugin(ctx, name, interface.WINDOW_PLUGIN_NAME, named, fields)
