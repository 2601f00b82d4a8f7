"""The contract between server and engine: the other three models, pixel constants and defaults.

What clients see of it is `codetr_client.contract`, and can be had from here too. Every `config.pbtxt` and every engine
is checked against both.
"""

from __future__ import annotations

from codetr_client.contract import (
    ENSEMBLE,
    MAX_DETECTIONS,
    PADDING_BOX,
    PADDING_LABEL,
    PADDING_SCORE,
    ModelContract,
    Tensor,
    TritonType,
    coco_class_names,
    ensemble,
)

__all__ = [
    "DETECTOR",
    "ENSEMBLE",
    "GUESTS",
    "MAX_DETECTIONS",
    "MODELS",
    "NMS_IOU_THRESHOLD",
    "PADDING_BOX",
    "PADDING_LABEL",
    "PADDING_SCORE",
    "PIXEL_MEAN",
    "PIXEL_STD",
    "PLUGIN_LIBRARY",
    "POSTPROCESS",
    "PREPROCESS",
    "SCORE_THRESHOLD",
    "SOFT_NMS_MIN_SCORE",
    "STEPS",
    "ModelContract",
    "Tensor",
    "TritonType",
    "coco_class_names",
    "contract",
    "ensemble",
    "model_name",
]

# Names of the ensemble's three steps. Those of a further engine in the same repository begin with that engine's own
# name: see `model_name`.
PREPROCESS = f"{ENSEMBLE}_preprocess"
DETECTOR = f"{ENSEMBLE}_detector"
# What the group of a detector's instances that share another's engine is called behind the detector's name.
GUESTS = "_guest"
POSTPROCESS = f"{ENSEMBLE}_postprocess"
STEPS = (PREPROCESS, DETECTOR, POSTPROCESS)
MODELS = (ENSEMBLE, *STEPS)
# The TensorRT plugin, beside the plan in the detector's version folder.
PLUGIN_LIBRARY = "libcodetr_plugin.so"

# ImageNet statistics of RGB pixels in 0..255, as every published Co-DETR config has them (`data_preprocessor`).
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

# Post-processing defaults: mmdetection's `test_cfg[0]` of Co-DINO.
SCORE_THRESHOLD = 0.0
NMS_IOU_THRESHOLD = 0.8
SOFT_NMS_MIN_SCORE = 0.001


def model_name(model: str, name: str) -> str:
    """Return what a model of the contract is called in the ensemble `name`: `codetr_detector` is NAME_detector."""
    return name + model.removeprefix(ENSEMBLE)


def contract(height: int, width: int, max_detections: int = MAX_DETECTIONS) -> dict[str, ModelContract]:
    """Return the contract of all four models for an engine of `height` x `width` pixels, by model name.

    `image_sizes` and `original_sizes` are (height, width): of the valid, unpadded part of `images`, and of the upright
    original. The detector's boxes are x1 y1 x2 y2 in 0..1 of the valid part.
    """
    whole = ensemble(max_detections)
    images = Tensor("images", "UINT8", (height, width, 3))
    image_sizes = Tensor("image_sizes", "INT32", (2,))
    original_sizes = Tensor("original_sizes", "INT32", (2,))
    candidates = whole.outputs[:-1]  # all but their number
    models = (
        whole,
        ModelContract(PREPROCESS, whole.inputs, (images, image_sizes, original_sizes)),
        ModelContract(DETECTOR, (images, image_sizes), candidates),
        ModelContract(POSTPROCESS, (*candidates, original_sizes), whole.outputs),
    )
    return {model.name: model for model in models}
