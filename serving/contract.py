"""The contract between client, server and engine, stated once: models, tensors, pixel constants, class names.

Every `config.pbtxt`, every client and every engine is checked against this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Literal

TritonType = Literal["BYTES", "UINT8", "INT32", "FP32"]

# Names of the four Triton models; `codetr` is the ensemble of the other three. Those of a further engine in the same
# repository begin with that engine's own name: see `model_name`.
ENSEMBLE = "codetr"
PREPROCESS = "codetr_preprocess"
DETECTOR = "codetr_detector"
POSTPROCESS = "codetr_postprocess"
# The TensorRT plugin, beside the plan in the detector's version folder.
PLUGIN_LIBRARY = "libcodetr_plugin.so"

# ImageNet statistics of RGB pixels in 0..255, as every published Co-DETR config has them (`data_preprocessor`).
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

# The variants' `test_cfg[0].max_per_img`; a derived variant may have another.
MAX_DETECTIONS = 300

# Post-processing defaults: mmdetection's `test_cfg[0]` of Co-DINO.
SCORE_THRESHOLD = 0.0
NMS_IOU_THRESHOLD = 0.8
SOFT_NMS_MIN_SCORE = 0.001

# What rows past `num_detections` hold.
PADDING_BOX = 0.0
PADDING_SCORE = 0.0
PADDING_LABEL = -1


def model_name(model: str, name: str) -> str:
    """Return what a model of the contract is called in the ensemble `name`: `codetr_detector` is NAME_detector."""
    return name + model.removeprefix(ENSEMBLE)


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


def contract(height: int, width: int, max_detections: int = MAX_DETECTIONS) -> dict[str, ModelContract]:
    """Return the contract of all four models for an engine of `height` x `width` pixels, by model name.

    `image` is an encoded JPEG, PNG, WebP or BMP. `image_sizes` and `original_sizes` are (height, width): of the
    valid, unpadded part of `images`, and of the upright original. The detector's boxes are x1 y1 x2 y2 in 0..1 of
    the valid part; the ensemble's are in pixels of the upright original.
    """
    image = Tensor("image", "BYTES", (1,))
    images = Tensor("images", "UINT8", (height, width, 3))
    image_sizes = Tensor("image_sizes", "INT32", (2,))
    original_sizes = Tensor("original_sizes", "INT32", (2,))
    candidates = (
        Tensor("boxes", "FP32", (max_detections, 4)),
        Tensor("scores", "FP32", (max_detections,)),
        Tensor("labels", "INT32", (max_detections,)),
    )
    detections = (*candidates, Tensor("num_detections", "INT32", (1,)))
    models = (
        ModelContract(ENSEMBLE, (image,), detections),
        ModelContract(PREPROCESS, (image,), (images, image_sizes, original_sizes)),
        ModelContract(DETECTOR, (images, image_sizes), candidates),
        ModelContract(POSTPROCESS, (*candidates, original_sizes), detections),
    )
    return {model.name: model for model in models}


def coco_class_names() -> tuple[str, ...]:
    """Return the 80 class names of COCO 2017 in label order, as the published checkpoints number them."""
    text = resources.files("serving").joinpath("coco_labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
