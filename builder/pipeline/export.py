"""Exports a detector of one input size as a `torch.export` program, the common ancestor of every engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from builder.engines import Device
from builder.operators.ms_deform_attn import reference_ms_deform_attn
from serving.errors import CodetrError

INPUT_NAMES = ("images", "image_sizes")
OUTPUT_NAMES = ("boxes", "scores", "labels")
# Pixels: the coarsest maps have one cell for 32 (and 64) of them; the largest published input is 2048 wide.
SIDES = (32, 4096)
BATCHES = (1, 256)


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
    """Return the whole detector, uint8 pixels to candidates, as a strictly exported program.

    The program takes `images` uint8 [B, height, width, 3] and `image_sizes` int32 [B, 2] and returns boxes, scores
    and labels; deformable attention stays one `codetr::ms_deform_attn` node a layer.
    """
    device = next(detector.parameters()).device
    inputs = tuple(tensor.to(device) for tensor in spec.sample_inputs())
    batch = {0: Dim("batch", min=1, max=spec.max_batch_size)} if spec.is_dynamic else {}
    return torch.export.export(detector, inputs, dynamic_shapes=(batch, batch), strict=True)


def uses_operator(program: ExportedProgram) -> bool:
    """Return whether a program has deformable attention as our operator."""
    operator = torch.ops.codetr.ms_deform_attn.default
    return any(node.target is operator for node in program.graph.nodes)


def device_of(program: ExportedProgram) -> Device:
    """Return where a program's weights lie, and so where it runs."""
    return "cuda" if next(iter(program.state_dict.values())).device.type == "cuda" else "cpu"


def decompose_operator(program: ExportedProgram) -> ExportedProgram:
    """Return the program with `codetr::ms_deform_attn` written out in standard operators."""
    return decompose(program, {torch.ops.codetr.ms_deform_attn.default: reference_ms_deform_attn})


def decompose(program: ExportedProgram, table: Mapping[Any, Callable[..., Tensor]]) -> ExportedProgram:
    """Return the program with operators written out as the functions of the table do."""
    with warnings.catch_warnings():
        # PyTorch 2.13 warns about its own use of a tree class while it copies a program.
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*", FutureWarning)
        return cast(ExportedProgram, program.run_decompositions(dict(table)))
