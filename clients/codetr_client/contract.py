"""What the service promises its clients: the ensemble's name, its tensors, its padding rows, COCO's class names.

The ensemble's configuration has a parameter `class_names`, a JSON list in label order. A request may have a parameter
`score_threshold`, the lowest score it wants to see, and `deadline_unix_ms`, when its client stops waiting. Nothing here
imports more than the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Literal

TritonType = Literal["BYTES", "UINT8", "INT32", "FP32"]

# The ensemble's usual name; a build may give it another.
ENSEMBLE = "codetr"

# The published variants' `test_cfg[0].max_per_img`; a derived variant may have another.
MAX_DETECTIONS = 300

# What rows past `num_detections` hold.
PADDING_BOX = 0.0
PADDING_SCORE = 0.0
PADDING_LABEL = -1

# A request's parameter: Unix time in milliseconds after which its client no longer listens.
DEADLINE_PARAMETER = "deadline_unix_ms"
# What a server's refusal of a request says, among other words, if that time was over before it was computed.
DEADLINE_PASSED = "deadline passed"


@dataclass(frozen=True)
class Tensor:
    """One input or output of a Triton model; `dims` leave the batch dimension out."""

    name: str
    dtype: TritonType
    dims: tuple[int, ...]


@dataclass(frozen=True)
class ModelContract:
    """The inputs and outputs of one Triton model, in the order of its `config.pbtxt`."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def ensemble(max_detections: int = MAX_DETECTIONS) -> ModelContract:
    """Return the contract of the ensemble, for an engine of at most `max_detections` boxes an image.

    `image` is an encoded JPEG, PNG, WebP or BMP. `boxes` are x1 y1 x2 y2 in pixels of the upright original.
    """
    outputs = (
        Tensor("boxes", "FP32", (max_detections, 4)),
        Tensor("scores", "FP32", (max_detections,)),
        Tensor("labels", "INT32", (max_detections,)),
        Tensor("num_detections", "INT32", (1,)),
    )
    return ModelContract(ENSEMBLE, (Tensor("image", "BYTES", (1,)),), outputs)


def coco_class_names() -> tuple[str, ...]:
    """Return the 80 class names of COCO 2017 in label order, as the published checkpoints number them."""
    text = resources.files("codetr_client").joinpath("coco_labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
