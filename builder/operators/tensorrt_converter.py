"""Converts `codetr::ms_deform_attn` into the TensorRT plugin of `plugin_src`.

Importing this module imports torch_tensorrt and registers the converter: import it only where a TensorRT engine is
built. `load_plugin` must have registered the plugin's creator before a network is converted.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorrt
import torch
from torch.fx.node import Target
from torch_tensorrt.dynamo.conversion import ConversionContext, dynamo_tensorrt_converter
from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor

import builder.operators.ms_deform_attn  # noqa: F401  # defines the operator
from builder.operators import interface
from serving.errors import CodetrError

SPATIAL_SHAPES, VALID_SHAPES = 4, 5  # positions among the operator's arguments


class TensorRTPluginError(CodetrError):
    """The TensorRT plugin is missing or refused the operator's arguments."""


def load_plugin(library: Path) -> None:
    """Load the plugin's library, which registers its creator with TensorRT.

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
    find_creator()


def find_creator() -> Any:
    """Return the plugin's creator from TensorRT's registry.

    Raises:
        TensorRTPluginError: it is not registered.
    """
    name, version = interface.PLUGIN_NAME, interface.PLUGIN_VERSION
    creator = tensorrt.get_plugin_registry().get_creator(name, version, interface.PLUGIN_NAMESPACE)
    if creator is None:
        raise TensorRTPluginError(
            f"TensorRT knows no plugin {name} version {version}: build it with make plugin and load it first"
        )
    return creator


def make_plugin(name: str, spatial_shapes: Sequence[int]) -> Any:
    """Return a plugin object for a network that is being built.

    Args:
        name: of the layer.
        spatial_shapes: level sizes, h0, w0, h1, w1, ...

    Raises:
        TensorRTPluginError: the plugin is not registered, or refused the sizes.
    """
    sizes = np.array(spatial_shapes, np.int32)
    field = tensorrt.PluginField(interface.SPATIAL_SHAPES_FIELD, sizes, tensorrt.PluginFieldType.INT32)
    made = find_creator().create_plugin(name, tensorrt.PluginFieldCollection([field]), tensorrt.TensorRTPhase.BUILD)
    if made is None:
        raise TensorRTPluginError(
            f"{interface.PLUGIN_NAME} refused spatial_shapes {list(spatial_shapes)}; TensorRT's log says why"
        )
    return made


@dynamo_tensorrt_converter(  # type: ignore[untyped-decorator]  # torch_tensorrt is not installed where mypy runs
    torch.ops.codetr.ms_deform_attn.default, supports_dynamic_shapes=True
)
def convert_ms_deform_attn(
    ctx: ConversionContext, target: Target, args: tuple[Any, ...], kwargs: dict[str, Any], name: str
) -> Any:
    """Add the plugin as one layer; the arguments are those of `builder.operators.ms_deform_attn.ms_deform_attn`."""
    valid_shapes = args[VALID_SHAPES] if len(args) > VALID_SHAPES else kwargs.get("valid_shapes")
    tensors = [*args[:SPATIAL_SHAPES], *([] if valid_shapes is None else [valid_shapes])]
    inputs = [
        get_trt_tensor(ctx, tensor, f"{name}_{input_name}")
        for input_name, tensor in zip(interface.INPUT_NAMES, tensors, strict=False)
    ]
    layer = ctx.net.add_plugin_v3(inputs, [], make_plugin(name, args[SPATIAL_SHAPES]))
    if layer is None:
        raise TensorRTPluginError(f"TensorRT could not add {interface.PLUGIN_NAME} as layer {name}; its log says why")
    layer.name = name
    return layer.get_output(0)
