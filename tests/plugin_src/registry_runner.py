"""Loads the plugin into TensorRT's registry through its Python bindings, and says what came of it.

python registry_runner.py BINDINGS LIBRARY
"""

import importlib
import sys

import numpy as np

trt = importlib.import_module(sys.argv[1])
registry = trt.get_plugin_registry()


def creator():
    return registry.get_creator("CodetrMsDeformAttn", "1", "")


def word(found):
    return "yes" if found else "no"


def make(sizes=(4, 6, 2, 3), dtype=np.int32, kind="INT32", name="spatial_shapes", phase="BUILD"):
    field = trt.PluginField(name, np.array(sizes, dtype), getattr(trt.PluginFieldType, kind))
    fields, when = trt.PluginFieldCollection([field]), getattr(trt.TensorRTPhase, phase)
    return "refused" if creator().create_plugin("layer", fields, when) is None else "made"


print("before:", word(creator()))
handle = registry.load_library(sys.argv[2])
print("loaded:", word(handle and creator()))
print(f"build phase: {make()}, runtime phase: {make(phase='RUNTIME')}")
print(
    f"one size missing: {make((4, 6, 2))}, zero columns: {make((4, 0))}, "
    f"float sizes: {make(dtype=np.float32, kind='FLOAT32')}, another name: {make(name='shapes')}"
)
print(f"loaded again: {word(registry.load_library(sys.argv[2]))}, still there: {word(creator())}")
registry.deregister_library(handle)
print("unloaded:", word(creator()))
print("reloaded:", word(registry.load_library(sys.argv[2]) and creator()))
print(f"build phase: {make()}, runtime phase: {make(phase='RUNTIME')}")
