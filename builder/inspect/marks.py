"""Marks: tensors that leave a detector's modules, and what its top-k chose, as outputs of an ONNX model or a program.

What a module returns is found by the names that the exporters leave at each node: a tensor that a node inside makes and
one outside reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from builder.engines.scopes import Step, leaving, mark_outputs, modules_of
from builder.pipeline.export import OUTPUT_NAMES, device_of
from serving.errors import CodetrError

UNREAD = ""  # in place of the name of places that nobody reads
_AGAIN = re.compile(r"@\d+$")  # the exporter's mark of a module's second and later calls


@dataclass(frozen=True)
class Marks:
    """Names of an engine's outputs, in the order of its graph."""

    returned: dict[str, list[str]]  # floating-point tensors that leave each module
    chosen: dict[str, list[str]]  # places that each top-k chose, by the innermost module; "" is the detector itself


def marks_of(steps: Sequence[Step], floating: set[str], choices: Sequence[tuple[Step, str]]) -> Marks:
    """Return the marks of a graph.

    Args:
        steps: its nodes.
        floating: names of the tensors that can be outputs.
        choices: its top-k nodes with the names of the places that they chose.
    """
    returned: dict[str, list[str]] = {}
    for module, names in leaving([_plain(step) for step in steps]).items():
        returned[module] = [name for name in names if name in floating]
    chosen: dict[str, list[str]] = {}
    for step, name in choices:
        modules = _plain(step).modules
        chosen.setdefault(modules[-1] if modules else "", []).append(name)
    return Marks(returned, chosen)


def _plain(step: Step) -> Step:
    return step._replace(modules=tuple(_AGAIN.sub("", module) for module in step.modules))


def mark_model(model: ModelProto, patterns: Sequence[str] = ("*",)) -> Marks:
    """Make what leaves the matching modules, and what each top-k chooses, outputs of an ONNX model, in place.

    Raises:
        EngineError: a pattern matches no module.
    """
    mark_outputs(model, patterns)
    outputs = {value.name for value in model.graph.output}
    values = {value.name: value for value in model.graph.value_info}
    choices = []
    for node in model.graph.node:
        if node.op_type != "TopK":
            continue
        name = node.output[1] if len(node.output) > 1 else UNREAD
        choices.append((_step(node), name))
        if name not in (UNREAD, *outputs):
            unknown = helper.make_tensor_value_info(name, TensorProto.INT64, None)
            model.graph.output.append(values.get(name, unknown))
    marked = {value.name for value in model.graph.output} - set(OUTPUT_NAMES)
    return marks_of([_step(node) for node in model.graph.node], marked, choices)


def _step(node: NodeProto) -> Step:
    return Step(modules_of(node), tuple(node.input), tuple(node.output))


class _Kept(nn.Module):
    """A program that returns, after its own outputs, the values of chosen nodes."""

    def __init__(self, program: GraphModule, names: Sequence[str]) -> None:
        super().__init__()
        self.program, self.names = program, tuple(names)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Tensor] = {}
        names = set(self.names)

        class Keeping(Interpreter):
            def run_node(self, n: Node) -> Any:
                made = super().run_node(n)
                if n.name in names:
                    values[n.name] = made
                return made

        outputs = Keeping(self.program).run(*inputs)
        return (*outputs, *(values[name].clone() for name in self.names))


def mark_program(program: ExportedProgram, patterns: Sequence[str] = ("*",)) -> tuple[ExportedProgram, Marks]:
    """Return the program with what leaves the matching modules, and what each top-k chooses, as further outputs.

    Its batch is the program's own, which must be fixed.
    """
    steps, floating, choices = [], set(), []
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        steps.append(Step(_modules_of(node), tuple(each.name for each in node.all_input_nodes), (node.name,)))
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point() and node.op == "call_function":
            floating.add(node.name)
        if node.target is torch.ops.aten.topk.default:
            places = next((user.name for user in node.users if user.args[1] == 1), UNREAD)
            choices.append((steps[-1], places))
    marks = marks_of(steps, floating, choices)
    wanted = [name for name in marks.returned if any(fnmatchcase(name, pattern) for pattern in patterns)]
    marks = Marks({name: marks.returned[name] for name in wanted}, marks.chosen)
    module = _Kept(program.module(check_guards=False), names_of(marks))
    return torch.export.export(module, _inputs(program), strict=False), marks


def _inputs(program: ExportedProgram) -> tuple[Tensor, ...]:
    """Return inputs of a program whose batch is fixed."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    given = [values[name] for name in program.graph_signature.user_inputs]
    place = device_of(program)
    return tuple(torch.zeros(tuple(map(int, value.shape)), dtype=value.dtype, device=place) for value in given)


def names_of(marks: Marks) -> list[str]:
    """Return the names of the outputs that a marked program has after its own."""
    names = [name for part in (*marks.returned.values(), *marks.chosen.values()) for name in part]
    return [name for name in dict.fromkeys(names) if name != UNREAD]


def _modules_of(node: Node) -> tuple[str, ...]:
    return tuple(name for name, _ in node.meta.get("nn_module_stack", {}).values() if name)


def check_patterns(detector: nn.Module, patterns: Sequence[str]) -> None:
    """Refuse a pattern that matches no module; raises CodetrError."""
    names = [name for name, _ in detector.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            first = sorted({name.split(".")[0] for name in names})
            raise CodetrError(f"no module is called {pattern}; there are {', '.join(first)} and those in them")
