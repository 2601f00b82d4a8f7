import json

import pytest

from builder.inspect.anatomy import Anatomy, Part, common_module

PARTS = (
    Part("a", "Conv", "backbone.0", ("images",), ("x",), ("float32 1x8",), "float32", 100, 1000, 2.0),
    Part("b", "Relu", "backbone.0", ("x",), ("y",), ("float32 1x8",), "float32", ms=0.5),
    Part("c", "TopK", "", ("y",), ("z",), ("int64 1x8",), "int64"),
)


@pytest.fixture
def anatomy():
    return Anatomy("onnx", "a small one", "model.onnx", 123, {}, ("images",), ("z",), PARTS)


def test_parts_are_summed_up(anatomy):
    assert anatomy.shares("kind") == [
        {"kind": "Conv", "parts": 1, "ms": 2.0, "weight_bytes": 100, "flops": 1000},
        {"kind": "Relu", "parts": 1, "ms": 0.5, "weight_bytes": 0, "flops": None},
        {"kind": "TopK", "parts": 1, "ms": None, "weight_bytes": 0, "flops": None},
    ]
    assert [(row["type"], row["parts"]) for row in anatomy.shares("type")] == [("float32", 2), ("int64", 1)]
    assert [(row["module"], row["ms"]) for row in anatomy.modules()] == [
        ("backbone", 2.5),
        ("(the detector itself)", None),
    ]
    assert next(row["module"] for row in anatomy.modules(2)) == "backbone.0"
    assert anatomy.has_times


def test_everything_is_json(anatomy):
    content = json.loads(json.dumps(anatomy.to_dict()))
    assert content["kind"] == "anatomy"
    assert content["parts"][0]["outputs"] == ["x"]


@pytest.mark.parametrize(
    ("modules", "common"),
    [
        ([], ""),
        (["a.b.c"], "a.b.c"),
        (["a.b.c", "a.b.d"], "a.b"),
        (["a.b", "a.b.d"], "a.b"),
        (["layers.1", "layers.10"], "layers"),
        (["a", "b"], ""),
    ],
)
def test_what_modules_have_in_common(modules, common):
    assert common_module(modules) == common
