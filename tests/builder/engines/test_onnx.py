import numpy as np
import onnx
import pytest
import torch
from onnxscript import rewriter

from builder import load_detector
from builder.engines import EngineError
from builder.engines import onnx as engine
from builder.pipeline.export import OPERATORS, InputSpec, export_detector
from builder.pipeline.samples import Samples
from builder.pipeline.verify import LIMITS, VerificationError, verify
from tests.conftest import HEIGHT, MAX_BATCH, WIDTH
from tests.toy_family import SMALL, BlindDetector, ToyDetector

SPEC = InputSpec(HEIGHT, WIDTH, MAX_BATCH)


@pytest.fixture(scope="module")
def detector(shallow_config, checkpoint):
    return load_detector(shallow_config, checkpoint)


@pytest.fixture(scope="module")
def onnx_file(repository):
    """What the engine wrote into the repository that the end-to-end tests serve."""
    return repository / "codetr_detector" / "1" / "model.onnx"


@pytest.fixture(scope="module")
def images():
    """A landscape, a portrait and a tiny image of noise."""
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((60, 100), (90, 41), (8, 8))]
    return Samples(images, ["landscape", "portrait", "tiny"])


def compare(detector, path, images):
    return verify(detector, engine.load(path, SPEC, "cpu"), images, HEIGHT, WIDTH, (1, 2), LIMITS["float32"])


def test_a_build_tells_its_file_and_where_it_runs(tmp_path):
    built = engine.build(export_detector(ToyDetector(SMALL), InputSpec(64, 96)), tmp_path / "model.onnx")
    assert (built.file, built.device, built.outputs) == (tmp_path / "model.onnx", "cpu", ("boxes", "scores", "labels"))
    assert built.inputs == ("images", "image_sizes")


def test_an_input_that_the_graph_does_not_read_is_none_of_the_engine(tmp_path):
    detector, path = BlindDetector(SMALL), tmp_path / "model.onnx"
    program = export_detector(detector, InputSpec(64, 96, 2))
    assert list(program.state_dict) == list(detector.state_dict()), "modules keep their names"
    built = engine.build(program, path)
    assert built.inputs == ("images",)
    assert [value.name for value in onnx.load(path).graph.input] == ["images"]
    run = engine.load(path, InputSpec(64, 96, 2), "cpu")
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    for sizes in (np.array([[64, 96]] * 2, np.int32), np.ones((2, 2), np.int32)):
        expected = detector(torch.from_numpy(images), torch.from_numpy(sizes))
        np.testing.assert_allclose(run(images, sizes).boxes, expected[0], atol=1e-6)


def test_the_exporter_is_told_of_our_operators_and_of_slow_rules_only_while_it_works(tmp_path, monkeypatch):
    def names():
        return {rule.name for rule in getattr(rewriter, engine.RULES)}

    def export(program, *arguments, **options):
        assert OPERATORS.items() <= torch._decomp.decomposition_table.items()
        assert names() == before - engine.SLOW_RULES
        raise torch.onnx.errors.OnnxExporterError("it has seen enough")

    before = names()
    assert before > engine.SLOW_RULES
    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(EngineError, match="it has seen enough"):
        engine.build(export_detector(ToyDetector(SMALL), InputSpec(64, 96)), tmp_path / "model.onnx")
    assert names() == before
    assert not OPERATORS.keys() & torch._decomp.decomposition_table.keys()


def test_file_follows_the_contract(onnx_file):
    graph = onnx.load(onnx_file).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "images": [HEIGHT, WIDTH, 3],
        "image_sizes": [2],
        "boxes": [300, 4],
        "scores": [300],
        "labels": [300],
    }
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}


def test_engine_reproduces_the_detector(detector, onnx_file, images):
    result = compare(detector, onnx_file, images).check()
    assert result.matched == 1
    assert result.batch_matched == 1
    assert result.max_score_difference < 1e-4
    assert result.compared == 3 * 100


def test_a_damaged_engine_is_refused(detector, onnx_file, images, tmp_path):
    """One weight of the decoder changed: every later candidate moves."""
    model = onnx.load(onnx_file)
    weight = next(item for item in model.graph.initializer if item.name.endswith("query_embed.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3, 0] += 8
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    comparison = compare(detector, tmp_path / "damaged.onnx", images)
    with pytest.raises(VerificationError, match="does not reproduce the detector: found"):
        comparison.check()
