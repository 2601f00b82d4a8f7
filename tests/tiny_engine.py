"""A stand-in for a detector that honours the contract in a few ONNX operators, so that tests know its answers.

Candidate `k` of every image has the label `k`, the box 0.05 k .. 0.05 k + 0.4 in both directions, and the score
DECAY^k times the mean brightness (0..1) of the image's valid part.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builder.engines.kinds import KINDS, BuiltEngine
from builder.pipeline.export import InputSpec
from builder.pipeline.repository import CANDIDATES, INPUTS, write_repository
from builder.variants import SwinConfig, Variant
from serving.contract import ENSEMBLE

MAX_DETECTIONS = 12
CLASS_NAMES = tuple(f"class {k}" for k in range(MAX_DETECTIONS))
DECAY = 0.9


def tiny_variant(class_names: tuple[str, ...] = CLASS_NAMES) -> Variant:
    """What a repository must know of the stand-in's network."""
    rows = MAX_DETECTIONS
    return Variant("tiny", SwinConfig(), num_classes=rows, num_queries=1, max_detections=rows, class_names=class_names)


def write_tiny_repository(
    destination: Path,
    *,
    height: int = 64,
    width: int = 96,
    decay: float = DECAY,
    class_names: tuple[str, ...] = CLASS_NAMES,
    name: str = ENSEMBLE,
) -> Path:
    """Write a repository of the stand-in, or add it to one that is there; batches up to 4."""
    with tempfile.TemporaryDirectory() as folder:
        file = write_tiny_engine(Path(folder, "tiny.onnx"), decay)
        engine = BuiltEngine(file, KINDS["onnx"], "cpu", INPUTS, CANDIDATES)
        spec = InputSpec(height, width, 4)
        return write_repository(destination, engine, tiny_variant(class_names), spec, {}, name=name)


def tiny_candidates(brightness: float, decay: float = DECAY) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, scores and labels of one image, as the engine computes them."""
    k = np.arange(MAX_DETECTIONS, dtype=np.float32)
    boxes = np.stack([0.05 * k, 0.05 * k, 0.05 * k + 0.4, 0.05 * k + 0.4], axis=1).astype(np.float32)
    return boxes, (np.float32(decay) ** k * np.float32(brightness)).astype(np.float32), k.astype(np.int32)


def write_tiny_engine(path: Path, decay: float = DECAY) -> Path:
    """Write the stand-in to `path`; it takes any batch, height and width."""
    boxes, scores, labels = tiny_candidates(1.0, decay)
    constants = {
        "box_rows": boxes[None],
        "score_rows": scores[None],
        "label_rows": labels[None],
        "white": np.float32(3 * 255),
        "pixel_axes": np.array([1, 2, 3]),
        "size_axis": np.array([1]),
        "last_axis": np.array([2]),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["pixels", "pixel_axes"], ["light"], keepdims=0),
        helper.make_node("Cast", ["image_sizes"], ["sizes"], to=TensorProto.FLOAT),
        helper.make_node("ReduceProd", ["sizes", "size_axis"], ["area"], keepdims=0),
        helper.make_node("Mul", ["area", "white"], ["full_light"]),
        helper.make_node("Div", ["light", "full_light"], ["brightness"]),
        helper.make_node("Unsqueeze", ["brightness", "size_axis"], ["column"]),
        helper.make_node("Mul", ["column", "score_rows"], ["scores"]),
        helper.make_node("Sub", ["column", "column"], ["zero"]),
        helper.make_node("Cast", ["zero"], ["zero_label"], to=TensorProto.INT32),
        helper.make_node("Add", ["zero_label", "label_rows"], ["labels"]),
        helper.make_node("Unsqueeze", ["zero", "last_axis"], ["zero_box"]),
        helper.make_node("Add", ["zero_box", "box_rows"], ["boxes"]),
    ]
    inputs = [("images", TensorProto.UINT8, ["B", "H", "W", 3]), ("image_sizes", TensorProto.INT32, ["B", 2])]
    outputs = [
        ("boxes", TensorProto.FLOAT, ["B", MAX_DETECTIONS, 4]),
        ("scores", TensorProto.FLOAT, ["B", MAX_DETECTIONS]),
        ("labels", TensorProto.INT32, ["B", MAX_DETECTIONS]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path
