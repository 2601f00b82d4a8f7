"""Exports a detector of one input size as a `torch.export` program, the common ancestor of every engine."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from builder.engines import Device
from builder.operators.linear_e4m3 import reference_linear_e4m3
from builder.operators.ms_deform_attn import reference_ms_deform_attn
from builder.operators.post_attention import reference_post_attention, reference_post_attention_followed
from builder.operators.window_attention import has_kernel, reference_window_attention
from builder.parts.layers import written_out_attention
from serving.errors import CodetrError

INPUT_NAMES = ("images", "image_sizes")
OUTPUT_NAMES = ("boxes", "scores", "labels")
# Pixels: the coarsest maps have one cell for 32 (and 64) of them; the largest published input is 2048 wide.
SIDES = (32, 4096)
BATCHES = (1, 256)
# Ours, and what writes them out in standard ones.
OPERATORS: dict[Any, Callable[..., Any]] = {
    torch.ops.codetr.ms_deform_attn.default: reference_ms_deform_attn,
    torch.ops.codetr.window_attention.default: reference_window_attention,
    torch.ops.codetr.linear_e4m3.default: reference_linear_e4m3,
    torch.ops.codetr.post_attention.default: reference_post_attention,
    torch.ops.codetr.post_attention_followed.default: reference_post_attention_followed,
}
WINDOW_ATTENTION = torch.ops.codetr.window_attention.default


class ExportError(CodetrError):
    """A detector that cannot be exported as asked; the message names the setting."""


@dataclass(frozen=True)
class InputSpec:
    """Input size of an engine: height and width in pixels are fixed, the batch is fixed or 1..max_batch_size."""

    height: int
    width: int
    max_batch_size: int = 1
    dynamic_batch: bool = True

    def __post_init__(self) -> None:
        for name, value, minimum, maximum in (
            ("height", self.height, *SIDES),
            ("width", self.width, *SIDES),
            ("batch", self.max_batch_size, *BATCHES),
        ):
            if not minimum <= value <= maximum:
                size = "small" if value < minimum else "large"
                raise ExportError(f"{name}={value} is too {size}; expected {minimum} to {maximum}")

    @property
    def is_dynamic(self) -> bool:
        """Whether the exported program takes any batch up to the largest."""
        return self.dynamic_batch and self.max_batch_size > 1

    def sample_inputs(self) -> tuple[Tensor, Tensor]:
        """Return gray uint8 images [max_batch_size, height, width, 3] and their full sizes int32 [.., 2]."""
        shape = (self.max_batch_size, self.height, self.width, 3)
        sizes = torch.tensor([(self.height, self.width)] * self.max_batch_size, dtype=torch.int32)
        return torch.full(shape, 128, dtype=torch.uint8), sizes


def export_detector(detector: nn.Module, spec: InputSpec) -> ExportedProgram:
    """Return the whole detector, uint8 pixels to candidates, as a program.

    The program takes `images` uint8 [B, height, width, 3] and, if the detector reads it, `image_sizes` int32 [B, 2];
    it returns boxes, scores and labels. Deformable attention stays one `codetr::ms_deform_attn` node a layer, window
    attention one `codetr::window_attention` node a block.

    Raises:
        ExportError: the detector makes a number of its open batch.
    """
    device = next(detector.parameters()).device
    inputs = tuple(tensor.to(device) for tensor in spec.sample_inputs())
    program = _export(detector, inputs, spec)
    if _reads_sizes(program):
        return program
    # Engines keep an input that nothing reads, and want to be fed it.
    return _export(_of_images_alone(detector), inputs[:1], spec)


def _of_images_alone(detector: nn.Module) -> nn.Module:
    """Return the detector without its second argument, which its outputs do not depend on; modules keep their names."""
    kind = type(detector)

    class OfImagesAlone(kind):  # type: ignore[misc, valid-type]  # a class that is known when the program runs
        def forward(self, images: Tensor) -> Any:
            return kind.forward(self, images, torch.ones(images.shape[0], 2, dtype=torch.int32, device=images.device))

    twin = copy.copy(detector)
    twin.__class__ = OfImagesAlone
    return twin


def _export(detector: nn.Module, inputs: tuple[Tensor, ...], spec: InputSpec) -> ExportedProgram:
    from torch._dynamo.exc import UserError, UserErrorType  # takes a second; who only reads a program needs none

    batch = {0: Dim("batch", min=1, max=spec.max_batch_size)} if spec.is_dynamic else {}
    try:
        return torch.export.export(detector, inputs, dynamic_shapes=(batch,) * len(inputs), strict=False)
    except UserError as error:
        if error.error_type is not UserErrorType.CONSTRAINT_VIOLATION:
            raise
        raise ExportError(
            f"the detector takes its batch for the number {spec.max_batch_size}, so no other could be run: its forward "
            "pass asks for the len() or int() of a tensor, or compares its size; take shape[0] as it is"
        ) from error


def _reads_sizes(program: ExportedProgram) -> bool:
    """Return whether an output depends on the values of `image_sizes`; its batch is that of `images`."""
    _, sizes = program.graph_signature.user_inputs
    needed: set[Node] = set()
    waiting = [node for node in program.graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in needed and node.target is not torch.ops.aten.sym_size.int:
            needed.add(node)
            waiting += node.all_input_nodes
    return any(node.name == sizes for node in needed)


def inputs_of(program: ExportedProgram) -> tuple[str, ...]:
    """Return what a program's inputs are called: `INPUT_NAMES`, or the first of them alone."""
    return INPUT_NAMES[: len(program.graph_signature.user_inputs)]


def uses_operator(program: ExportedProgram) -> bool:
    """Return whether a program has one of our operators."""
    return any(node.target in OPERATORS for node in program.graph.nodes)


def device_of(program: ExportedProgram) -> Device:
    """Return where a program's weights lie, and so where it runs."""
    return "cuda" if next(iter(program.state_dict.values())).device.type == "cuda" else "cpu"


def decompose_operator(program: ExportedProgram) -> ExportedProgram:
    """Return the program with our operators written out in standard ones."""
    return decompose(program, OPERATORS)


def decompose_attention(
    program: ExportedProgram,
    *,
    window_plugin: bool = True,
    others: Mapping[Any, Callable[..., Tensor]] = MappingProxyType({}),
) -> ExportedProgram:
    """Return the program with all attention that no plugin does in simple operators, which is what TensorRT fuses.

    PyTorch's own operator for plain attention is converted in several ways.

    Args:
        program: any.
        window_plugin: whether window attention that our kernel does stays a node.
        others: what writes other operators out in the same go, by the operator.
    """
    table = dict(others)
    if any(node.target is torch.ops.aten.scaled_dot_product_attention.default for node in program.graph.nodes):
        table[torch.ops.aten.scaled_dot_product_attention.default] = written_out_attention
    windows = [node for node in program.graph.nodes if node.target is WINDOW_ATTENTION]
    if not window_plugin and windows:
        table[WINDOW_ATTENTION] = reference_window_attention
    elif not all(map(_has_plugin, windows)):
        table[WINDOW_ATTENTION] = _written_out_without_plugin
    return decompose(program, table) if table else program


def _has_plugin(window_attention: Node) -> bool:
    """Return whether the TensorRT plugin, whose kernel is the CUDA operator's, does what a node does."""
    arguments: list[Any] = [each.meta["val"] if isinstance(each, Node) else each for each in window_attention.args]
    qkv, _, bias_table, window_size, _ = arguments
    return has_kernel(qkv, bias_table, window_size)


def _written_out_without_plugin(
    qkv: Tensor, qkv_bias: Tensor | None, bias_table: Tensor, window_size: int, shift: int
) -> Tensor:
    """Write window attention out; what the plugin does stays, as what a table's function does not implement."""
    if has_kernel(qkv, bias_table, window_size):
        return NotImplemented
    return reference_window_attention(qkv, qkv_bias, bias_table, window_size, shift)


def decompose(program: ExportedProgram, table: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
    """Return the program with operators written out as the functions of the table do."""
    with warnings.catch_warnings():
        # PyTorch 2.13 warns about its own use of a tree class while it copies a program.
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*", FutureWarning)
        return cast(ExportedProgram, program.run_decompositions(dict(table)))
