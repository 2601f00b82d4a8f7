"""Which module of the detector a node of an ONNX file comes from, and what leaves a module."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from builder.engines import EngineError

SCOPES = "pkg.torch.onnx.name_scopes"  # what PyTorch's exporter writes beside a node: its modules, the outermost first
_NO_MODULE = "_empty_nn_module_stack"  # begins what PyTorch writes where it made a node itself
_FLOATING = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def keep_scopes_alone(model: ModelProto) -> None:
    """Remove, in place, what the exporter tells of this machine (source paths) and of every operator's call."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        kept = [entry for entry in part.metadata_props if entry.key == SCOPES]
        del part.metadata_props[:]
        part.metadata_props.extend(kept)
        part.doc_string = ""


def modules_of(node: NodeProto) -> tuple[str, ...]:
    """Return the names of the modules that a node lies in, the innermost last; () if the file does not say."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            names = ast.literal_eval(entry.value)[:-1]
            return tuple(name for name in names if name and not name.startswith(_NO_MODULE))
    return ()


def module_outputs(model: ModelProto, patterns: Sequence[str]) -> dict[str, list[str]]:
    """Return the floating-point tensors that leave each module whose name matches a pattern, by the module's name.

    Args:
        model: of PyTorch's exporter.
        patterns: as the shell's: `encoder.layers.*` is every layer and all inside of them.

    Raises:
        EngineError: a pattern matches no module; names those of the first levels.
    """
    types = {value.name: value.type.tensor_type.elem_type for value in _values(model)}
    floating = {name for name, type_ in types.items() if type_ in _FLOATING}
    steps = [Step(modules_of(node), tuple(node.input), tuple(node.output)) for node in model.graph.node]
    found = {
        module: [name for name in names if name in floating]
        for module, names in leaving(steps).items()
        if any(fnmatchcase(module, pattern) for pattern in patterns)
    }
    for pattern in patterns:
        if not any(fnmatchcase(module, pattern) for module in found):
            known = {".".join(module.split(".")[:2]) for node in model.graph.node for module in modules_of(node)}
            raise EngineError(f"no module is called {pattern}; there are {', '.join(sorted(known))} and those in them")
    return found


class Step(NamedTuple):
    """One node of a graph."""

    modules: tuple[str, ...]  # that it lies in, the innermost last
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def leaving(steps: Sequence[Step]) -> dict[str, list[str]]:
    """Return the tensors that steps outside of a module read of it, by the module's name, in the order of the graph."""
    users: dict[str, list[set[str]]] = {}
    for step in steps:
        for name in step.inputs:
            users.setdefault(name, []).append(set(step.modules))
    found: dict[str, list[str]] = {}
    for step in steps:
        for module in dict.fromkeys(step.modules):
            names = found.setdefault(module, [])
            names += [name for name in step.outputs if any(module not in inside for inside in users.get(name, ()))]
    return found


def mark_outputs(model: ModelProto, patterns: Sequence[str]) -> dict[str, list[str]]:
    """Make what leaves the matching modules outputs of the graph, in place; return them as `module_outputs`.

    TensorRT fuses nothing across an output of its network.
    """
    found = module_outputs(model, patterns)
    values = {value.name: value for value in _values(model)}
    outputs = {value.name for value in model.graph.output}
    for name in dict.fromkeys(name for names in found.values() for name in names):
        if name not in outputs:
            model.graph.output.append(helper.make_value_info(name, values[name].type))
    return found


def _values(model: ModelProto) -> list[ValueInfoProto]:
    return [*model.graph.value_info, *model.graph.output]
