"""An engine's file that is cut short, empty or not to be read is named in one line, whatever its library says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from builder.engines import EngineError, loading
from builder.engines import torch as torch_engine
from builder.engines.onnx import load_session, read_graph
from builder.inspect.marked import marked_onnx
from builder.inspect.onnx_file import describe_onnx
from builder.pipeline.export import InputSpec

IMAGES, SIZES = np.zeros((1, 8, 8, 3), np.uint8), np.array([[8, 8]], np.int32)


@pytest.fixture(params=[100, 0], ids=["cut short", "empty"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1000])
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1000], np.ones(1000, np.float32))
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [value], [weights])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path)
    path.write_bytes(path.read_bytes()[: request.param])
    return path


def test_an_onnx_file(damaged: Path, tmp_path: Path) -> None:
    for use in (
        load_session,
        read_graph,
        lambda file: describe_onnx(file, IMAGES, SIZES, 1, "title", {}),
        lambda file: marked_onnx(file, tmp_path, ("*",)),
    ):
        with pytest.raises(EngineError, match=r"model\.onnx (cannot be loaded \(.*\)|holds no graph); build the rep"):
            use(damaged)


def test_a_package(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(EngineError, match=r"model\.pt2 cannot be loaded \(.*zip archive.*\); build the repository"):
        torch_engine.load(path, InputSpec(64, 64), "cpu")


@pytest.mark.parametrize(
    "error", [EngineError("our own"), MemoryError(), torch.OutOfMemoryError("CUDA out of memory")], ids=repr
)
def test_what_says_more_stays_as_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, loading(Path("model.onnx")):
        raise error
    assert caught.value is error
