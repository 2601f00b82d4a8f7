"""perf_analyzer's input files: real pictures for the ensemble, and what the steps before would hand to each step."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perf.pictures import encoded_picture
from perf.preprocess.run import candidates
from serving import contract
from serving.errors import CodetrError
from serving.preprocess import preprocess


def write_inputs(
    model: str, configs: Mapping[str, Any], picture_sizes: Sequence[tuple[int, int]], folder: Path
) -> Path:
    """Write the requests for one of the four models to `folder`/MODEL.json and return its path.

    `configs` maps model names to their Triton configuration (JSON), from which come the engine's height and width
    and the number of candidates; `picture_sizes` are (width, height) of the JPEGs that requests cycle through.
    """
    pictures = [encoded_picture(*size, seed=index) for index, size in enumerate(picture_sizes)]
    if model in (contract.ENSEMBLE, contract.PREPROCESS):
        requests = [{"image": _bytes_tensor(picture)} for picture in pictures]
    elif model == contract.DETECTOR:
        requests = [_detector_request(picture, configs[contract.DETECTOR]) for picture in pictures]
    elif model == contract.POSTPROCESS:
        requests = [_postprocess_request(size, configs[contract.POSTPROCESS]) for size in picture_sizes]
    else:
        raise CodetrError(f"model {model!r}: expected one of {', '.join(contract.contract(1, 1))}")
    path = folder / f"{model}.json"
    path.write_text(json.dumps({"data": requests}), encoding="utf-8")
    return path


def _detector_request(picture: bytes, config: Mapping[str, Any]) -> dict[str, Any]:
    height, width, _ = _dims(config, "images")
    prepared = preprocess(picture, height, width)
    arrays: dict[str, npt.NDArray[Any]] = {
        "images": prepared.images,
        "image_sizes": np.array(prepared.image_size, np.int32),
    }
    return {tensor["name"]: _array_tensor(arrays[tensor["name"]]) for tensor in config["input"]}


def _postprocess_request(size: tuple[int, int], config: Mapping[str, Any]) -> dict[str, Any]:
    boxes, scores, labels = candidates(_dims(config, "boxes")[0])
    return {
        "boxes": _array_tensor(boxes),
        "scores": _array_tensor(scores),
        "labels": _array_tensor(labels),
        "original_sizes": _array_tensor(np.array(size[::-1], np.int32)),
    }


def _dims(config: Mapping[str, Any], name: str) -> list[int]:
    tensors = {tensor["name"]: tensor for tensor in config["input"]}
    # protobuf's JSON has 64-bit numbers as text
    return [int(side) for side in tensors[name]["dims"]]


def _array_tensor(array: npt.NDArray[Any]) -> dict[str, Any]:
    return {"b64": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode(), "shape": list(array.shape)}


def _bytes_tensor(content: bytes) -> dict[str, Any]:
    # the wire form of a BYTES element: its length as 4 bytes, little-endian, before it
    return {"b64": base64.b64encode(struct.pack("<I", len(content)) + content).decode(), "shape": [1]}
