import json
import math

import pytest

from builder.inspect import report
from builder.inspect.layers import Layer, LayerComparison

ABOUT = {"variant": "a", "engine": "onnx", "precision": "float32", "height": 64, "width": 96, "weights": None}


def layer(name, own, carried=0.0, kind="Linear", parents=(), **more):
    return Layer(name, kind, parents, (1, 8), own, carried, 3e-5, 2e-3, **more)


def comparison(*layers, **more):
    return LayerComparison(
        "float32", "what", list(layers), more.pop("unseen", []), more.pop("suspects", {}), ["x"], **more
    )


AGREES = comparison(layer("backbone.0", 1e-7), layer("head", 2e-6, 1e-6))
LEAVES = comparison(
    layer("backbone.0", 1e-7),
    layer("encoder.ffn.0", 1e-2, 1e-2, parents=("encoder", "encoder.ffn"), not_finite=3),
    layer("decoder.0", 2e-7, 5e-3),
    layer("decoder.1", 4e-5, 5e-3),
    suspects={"encoder.ffn.0": ["encoder.ffn.0.weight", "encoder.ffn.0.bias"]},
)


def test_what_agrees_says_how_near_it_is():
    (text,) = report.verdict(AGREES)
    assert text == (
        "All 2 tensors are within their tolerance; nearest to it is head, whose own error is 2.0e-06 of 3.0e-05."
    )


def test_what_leaves_is_named_with_its_parents_weights_and_followers():
    text = " ".join(report.verdict(LEAVES))
    assert "encoder.ffn.0 (Linear) leaves its tolerance first: its own error is 1.0e-02, 333 times the 3.0e-05" in text
    assert "It is in encoder > encoder.ffn." in text
    assert "encoder.ffn.0.weight, encoder.ffn.0.bias" in text
    assert "3 of its elements are NaN or infinite" in text
    assert "1 more layers do so by themselves: decoder.1." in text


def test_what_adds_up_is_told_from_what_a_layer_does():
    (text,) = report.verdict(comparison(layer("a", 1e-5, 1e-3), layer("b", 1e-5, 3e-3)))
    assert (
        text == "No layer leaves its own tolerance, but what they carry adds up: b is 3.0e-03 from PyTorch, of 2.0e-03."
    )


def test_remarks_tell_what_changed_places_and_what_is_not_compared():
    found = comparison(
        layer("proposals.choice", 1e-6, kind="top-k", moved=4),
        layer("b", 1.0, note="after x, which the engine does not tell"),
        unseen=["c"],
        notes=["the file is another"],
    )
    text = "\n".join(report.remarks(found))
    assert found.first is None
    assert "proposals.choice: 4 rows changed places" in text
    assert "1 tensors are not comparable, from b on" in text
    assert "1 modules have no tensor of their own in the engine" in text
    assert "the file is another." in text


def test_the_curve_shows_where_the_error_begins():
    lines = report.curve(LEAVES, width=4, height=9)
    rows = [text.split("|")[1].ljust(4) for text in lines[:9]]
    columns = ["".join(row[i] for row in rows) for i in range(4)]
    assert "X" in columns[1]
    assert "o" in columns[0]
    assert "." in columns[2]
    assert all("-" in column for column in (columns[0], columns[2]))
    assert columns[1].index("X") < columns[0].index("o"), "higher up"
    assert lines[-1].strip().startswith("b") or "encoder" in lines[-1] or lines[-1].strip() == ""


def test_many_layers_share_columns_and_the_worst_is_seen():
    many = [layer(f"part.{i}", 1e-7) for i in range(1000)]
    many[777] = layer("part.777", 1.0)
    lines = report.curve(comparison(*many))
    (row,) = [text for text in lines if "X" in text]
    assert row.index("X") - row.index("|") - 1 == pytest.approx(777 * 72 / 1000, abs=1)
    assert len(max(lines, key=len)) <= 80


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_infinite_errors_are_drawn_and_written(value):
    found = comparison(layer("a", 1e-7), layer("b", value, value))
    assert found.first.name == "b"
    assert any("X" in text for text in report.curve(found))
    content = json.loads(json.dumps(report.finite(report.to_dict(found, ABOUT)), allow_nan=False))
    assert content["layers"][1]["own"] == str(value)
    assert content["first"]["name"] == "b"


def test_the_page_has_every_layer_with_its_limits():
    text = report.to_markdown(LEAVES, ABOUT)
    assert "| encoder.ffn.0 | Linear | 1.0e-02 | 3.0e-05 | 1.0e-02 | 2.0e-03 | **leaves** |" in text
    assert "| decoder.0 | Linear | 2.0e-07 | 3.0e-05 | 5.0e-03 | 2.0e-03 | carries |" in text
    assert "compare.svg" in text


def test_the_worst_come_first():
    assert [each.name for each in report.worst(LEAVES)] == ["encoder.ffn.0", "decoder.1", "decoder.0", "backbone.0"]
