"""Damages a layer of an ONNX file on purpose."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builder.engines.scopes import SCOPES, modules_of
from tests.builder.inspect.small import KINDS


def damage_onnx(source, target, module, kind):
    """Write `source` with one damaged layer: its weights, its bias, or what it makes rounded to FP16."""
    model = onnx.load(source)
    nodes = [node for node in model.graph.node if modules_of(node)[-1:] == (module,)]
    if kind == KINDS[2]:
        _round(model, nodes[-1])
    else:
        names = {name for node in nodes for name in node.input}
        rank = 1 if kind == KINDS[1] else 2
        mine = [item for item in model.graph.initializer if item.name in names and item.data_type == TensorProto.FLOAT]
        (item,) = (each for each in mine if min(len(each.dims), 2) == rank)
        values = numpy_helper.to_array(item)
        assert np.abs(values).max() > 1e-3
        item.CopyFrom(numpy_helper.from_array(values * np.float32(1.01 if kind == KINDS[0] else 0), item.name))
    onnx.save(model, target)


def _round(model, node):
    name = node.output[0]
    node.output[0] = f"{name}_exact"
    scope = next(entry.value for entry in node.metadata_props if entry.key == SCOPES)
    place = list(model.graph.node).index(node) + 1
    for source, made, type_ in ((f"{name}_exact", f"{name}_half", "FLOAT16"), (f"{name}_half", name, "FLOAT")):
        cast = helper.make_node("Cast", [source], [made], made, to=getattr(TensorProto, type_))
        entry = cast.metadata_props.add()
        entry.key, entry.value = SCOPES, scope
        model.graph.node.insert(place, cast)
        place += 1
