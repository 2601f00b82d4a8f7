"""Loads the plugins into TensorRT's registry through its Python bindings, and says what came of it.

python registry_runner.py BINDINGS LIBRARY
"""

import importlib
import sys

import numpy as np

trt = importlib.import_module(sys.argv[1])
registry = trt.get_plugin_registry()


DEFORMABLE, WINDOW = "CodetrMsDeformAttn", "CodetrWindowAttention"


def creator(name):
    return registry.get_creator(name, "1", "")


def word(found):
    return "yes" if found else "no"


def words():
    return f"{word(creator(DEFORMABLE))}, {word(creator(WINDOW))}"


def make(plugin, phase="BUILD", dtype=np.int32, kind="INT32", **fields):
    given = [
        trt.PluginField(name, np.array(each, dtype), getattr(trt.PluginFieldType, kind))
        for name, each in fields.items()
    ]
    made = creator(plugin).create_plugin("layer", trt.PluginFieldCollection(given), getattr(trt.TensorRTPhase, phase))
    return "refused" if made is None else "made"


def made(phase):
    """Both plugins, made of right fields."""
    deformable = make(DEFORMABLE, phase, spatial_shapes=[4, 6, 2, 3])
    return f"{deformable}, {make(WINDOW, phase, window_size=[7], shift=[3])}"


print("before:", words())
handle = registry.load_library(sys.argv[2])
print("loaded:", words() if handle else "no")
print(f"build phase: {made('BUILD')}; runtime phase: {made('RUNTIME')}")
print(
    f"one size missing: {make(DEFORMABLE, spatial_shapes=[4, 6, 2])}, "
    f"zero columns: {make(DEFORMABLE, spatial_shapes=[4, 0])}, "
    f"float sizes: {make(DEFORMABLE, dtype=np.float32, kind='FLOAT32', spatial_shapes=[4, 6])}, "
    f"another name: {make(DEFORMABLE, shapes=[4, 6])}"
)
print(
    f"window of 8: {make(WINDOW, window_size=[8], shift=[4])}, shift of 7: {make(WINDOW, window_size=[7], shift=[7])}, "
    f"two sizes: {make(WINDOW, window_size=[7, 7], shift=[3])}, no shift: {make(WINDOW, window_size=[7])}"
)
print(f"loaded again: {word(registry.load_library(sys.argv[2]))}, still there: {words()}")
registry.deregister_library(handle)
print("unloaded:", words())
print("reloaded:", words() if registry.load_library(sys.argv[2]) else "no")
print(f"build phase: {made('BUILD')}; runtime phase: {made('RUNTIME')}")
