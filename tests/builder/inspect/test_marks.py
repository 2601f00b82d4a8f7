"""What is marked of the ONNX file that the tests build once."""

import onnx
import pytest

from builder.checkpoint import load_detector
from builder.inspect.marks import check_patterns, mark_model
from serving.errors import CodetrError


def test_only_the_modules_asked_for_are_outputs(repository):
    model = onnx.load(repository / "codetr_detector" / "1" / "model.onnx")
    marks = mark_model(model, ["decoder.layers.0"])
    assert set(marks.returned) >= {"decoder.layers.0", "decoder"}
    assert marks.returned["backbone"] == []
    assert set(marks.chosen) == {"proposals", ""}
    added = [value.name for value in model.graph.output][3:]
    assert sorted(added) == sorted({*marks.returned["decoder.layers.0"], *marks.chosen["proposals"], *marks.chosen[""]})


def test_a_pattern_without_a_module_is_refused(shallow_config, checkpoint):
    co_dino = load_detector(shallow_config, checkpoint).deploy()
    check_patterns(co_dino, ["encoder.layers.*", "decoder"])
    with pytest.raises(CodetrError, match="no module is called head; there are backbone, class_head, decoder"):
        check_patterns(co_dino, ["decoder", "head"])
