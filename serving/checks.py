"""What the steps ask of their inputs beyond types and shapes, which Triton compares with `config.pbtxt` before.

Each step can be called by itself, with whatever a client makes up. A value that no other step could have given is an
error of its request: an engine fed with a size of 0 would fail for everybody in its batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.contract import DETECTOR, POSTPROCESS
from serving.errors import CodetrError

Array = npt.NDArray[Any]

# Boxes are 0..1 of the image; those of DETR's families reach beyond it by half their side, and no further.
BOX_LIMIT = 100.0
_NO_PARAMETERS = ("", "{}")  # the usual ones
# Of a score in half precision, whose next number above 1 is this far away.
_ROUNDING = 1e-3


def parameters_of(request: Any) -> dict[str, Any]:
    """Return a request's parameters.

    Raises:
        CodetrError: a name or a value is not UTF-8.
    """
    try:
        text = request.parameters() or ""
        parameters: dict[str, Any] = {} if text in _NO_PARAMETERS else json.loads(text)
    except ValueError as error:  # UnicodeDecodeError is one
        raise CodetrError("parameters: expected names and values in UTF-8") from error
    return parameters


def check_inputs(model: str, inputs: Mapping[str, Array]) -> None:
    """Check the inputs of one request, each `[B, ...]`.

    Args:
        model: whose inputs, by its name in the contract.
        inputs: by name.

    Raises:
        CodetrError: there is no image, or a size, label, score or box that no engine and no image can have; names the
            input, the value and what was expected.
    """
    if any(len(array) == 0 for array in inputs.values()):
        raise CodetrError("the request holds no image")
    if model == DETECTOR and "image_sizes" in inputs:  # not every graph reads it
        _check_image_sizes(inputs["image_sizes"], inputs["images"].shape[1], inputs["images"].shape[2])
    elif model == POSTPROCESS:
        _check_original_sizes(inputs["original_sizes"])
        _check_candidates(inputs["boxes"], inputs["scores"], inputs["labels"])


def _check_image_sizes(sizes: Array, height: int, width: int) -> None:
    for h, w in sizes.tolist():
        if not (1 <= h <= height and 1 <= w <= width):
            raise CodetrError(f"image_sizes: expected height and width in 1..{height} and 1..{width}, got {h} and {w}")


def _check_original_sizes(sizes: Array) -> None:
    for h, w in sizes.tolist():
        if h < 1 or w < 1:
            raise CodetrError(f"original_sizes: expected height and width of at least 1, got {h} and {w}")


def _check_candidates(boxes: Array, scores: Array, labels: Array) -> None:
    """NaN and infinity are not looked at: post-processing drops their candidates, and says so."""
    if _are_usual(boxes, scores, labels):
        return
    finite = np.isfinite(boxes).all(axis=-1) & np.isfinite(scores)
    for name, expected, wrong, values in (
        ("scores", "numbers in 0..1", (scores < 0) | (scores > 1 + _ROUNDING), scores),
        ("labels", "0 or more", labels < 0, labels),
        ("boxes", "parts of an image, 0..1", np.abs(boxes).max(axis=-1, initial=0) > BOX_LIMIT, np.abs(boxes).max(-1)),
    ):
        if (wrong & finite).any():
            raise CodetrError(f"{name}: expected {expected}, got {values[wrong & finite][0]:g}")


def _are_usual(boxes: Array, scores: Array, labels: Array) -> bool:
    """Return whether all is as expected and finite, which costs a quarter of finding out what is not."""
    if not (boxes.size and scores.size and labels.size):
        return False
    lowest, highest = np.minimum.reduce, np.maximum.reduce  # which the methods of arrays call in a roundabout way
    within = lowest(boxes, axis=None).item() >= -BOX_LIMIT and highest(boxes, axis=None).item() <= BOX_LIMIT
    within = within and lowest(scores, axis=None).item() >= 0 and highest(scores, axis=None).item() <= 1 + _ROUNDING
    return bool(within and lowest(labels, axis=None).item() >= 0)  # NaN is neither
