from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perf.server.requests import write_inputs
from serving import contract
from serving.errors import CodetrError
from serving.preprocess import preprocess

HEIGHT, WIDTH, K = 64, 96, 30
SIZES = [(80, 40), (40, 80)]
TYPES = {"UINT8": np.uint8, "INT32": np.int32, "FP32": np.float32}


def config(model: str) -> dict[str, Any]:
    """Return the model's configuration as the server's JSON has it: dimensions as text."""
    inputs = contract.contract(HEIGHT, WIDTH, K)[model].inputs
    return {"input": [{"name": tensor.name, "dims": [str(side) for side in tensor.dims]} for tensor in inputs]}


def requests(model: str, folder: Path) -> list[dict[str, Any]]:
    return json.loads(write_inputs(model, {model: config(model)}, SIZES, folder).read_text())["data"]


@pytest.mark.parametrize("model", [contract.DETECTOR, contract.POSTPROCESS])
def test_every_input_of_the_contract_is_there_in_its_shape_and_type(model: str, tmp_path: Path) -> None:
    for request in requests(model, tmp_path):
        tensors = contract.contract(HEIGHT, WIDTH, K)[model].inputs
        assert set(request) == {tensor.name for tensor in tensors}
        for tensor in tensors:
            assert request[tensor.name]["shape"] == list(tensor.dims)
            content = base64.b64decode(request[tensor.name]["b64"])
            assert len(content) == np.prod(tensor.dims) * np.dtype(TYPES[tensor.dtype]).itemsize


@pytest.mark.parametrize("model", [contract.ENSEMBLE, contract.PREPROCESS])
def test_pictures_are_length_prefixed_jpegs_of_every_size(model: str, tmp_path: Path) -> None:
    for request, size in zip(requests(model, tmp_path), SIZES, strict=True):
        content = base64.b64decode(request["image"]["b64"])
        assert struct.unpack("<I", content[:4]) == (len(content) - 4,)
        assert preprocess(content[4:], HEIGHT, WIDTH).original_size == size[::-1]


def test_the_detector_gets_the_valid_sizes(tmp_path: Path) -> None:
    content = [base64.b64decode(request["image_sizes"]["b64"]) for request in requests(contract.DETECTOR, tmp_path)]
    assert [np.frombuffer(each, np.int32).tolist() for each in content] == [[48, 96], [64, 32]]


def test_the_detector_gets_only_what_it_has(tmp_path: Path) -> None:
    images = {"name": "images", "dims": [str(HEIGHT), str(WIDTH), "3"]}
    path = write_inputs(contract.DETECTOR, {contract.DETECTOR: {"input": [images]}}, SIZES, tmp_path)
    assert [set(request) for request in json.loads(path.read_text())["data"]] == [{"images"}] * len(SIZES)


def test_an_unknown_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match="model 'other': expected one of codetr, codetr_preprocess"):
        write_inputs("other", {}, SIZES, tmp_path)
