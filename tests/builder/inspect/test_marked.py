"""Engines whose modules' outputs are marked: the small repository's ONNX file damaged on purpose, packages, plans."""

import copy
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from builder.checkpoint import load_detector
from builder.engines.onnx import build
from builder.engines.scopes import mark_outputs
from builder.engines.tensorrt import TensorRTSettings, onnx_frontend, route
from builder.engines.tensorrt.child import TensorRTPython
from builder.inspect import marked
from builder.inspect.layers import compare_layers
from builder.inspect.marks import mark_model, names_of
from builder.operators import interface
from builder.pipeline.export import InputSpec, export_detector, uses_operator
from builder.pipeline.samples import sample_images
from builder.pipeline.verify import fit
from tests.builder.engines.tensorrt import windowed
from tests.builder.inspect.damage import damage_onnx
from tests.builder.inspect.small import DEPTHS, HEIGHT, KINDS, WIDTH, damaged, samples, small_detector
from tests.conftest import HEIGHT as TINY_HEIGHT
from tests.conftest import WIDTH as TINY_WIDTH

# Of the shallow Swin Co-DINO that the tests build once.
CO_DINO = {
    "backbone": "backbone.stages.1.blocks.0.fc1",
    "encoder": "encoder.layers.0.ffn.0",
    "decoder": "decoder.layers.0.cross_attn.value_proj",
}


@pytest.fixture(scope="module")
def co_dino(shallow_config, checkpoint):
    return load_detector(shallow_config, checkpoint).deploy()


@pytest.fixture(scope="module")
def onnx_file(repository):
    return repository / "codetr_detector" / "1" / "model.onnx"


@pytest.fixture(scope="module")
def drawn(co_dino):
    shapes = sample_images((), None)
    pixels, sizes = fit(shapes.images[:1], TINY_HEIGHT, TINY_WIDTH, co_dino.variant.rules.pixels)
    return [("shapes-0", pixels, sizes)]


def test_an_onnx_file_agrees_layer_by_layer(co_dino, onnx_file, drawn, tmp_path):
    found = compare_layers(co_dino, marked.marked_onnx(onnx_file, tmp_path), drawn, "float32")
    assert found.first is None
    assert len(found.layers) > 75
    assert found.unseen == []
    assert {"proposals.choice", "choice", *CO_DINO.values()} <= {layer.name for layer in found.layers}


# One kind of damage at each depth; the others with what is slow.
DAMAGES = [
    pytest.param(depth, kind, marks=() if quick else pytest.mark.slow)
    for i, depth in enumerate(CO_DINO)
    for j, kind in enumerate(KINDS)
    for quick in [i == j]
]


@pytest.mark.parametrize(("depth", "kind"), DAMAGES)
def test_the_damaged_layer_of_an_onnx_file_is_named(co_dino, onnx_file, drawn, tmp_path, depth, kind):
    damage_onnx(onnx_file, tmp_path / "damaged.onnx", CO_DINO[depth], kind)
    engine = marked.marked_onnx(tmp_path / "damaged.onnx", tmp_path, (f"{depth}*", "proposals*"))
    found = compare_layers(co_dino, engine, drawn, "float32")
    assert found.first.name == CO_DINO[depth]
    assert [layer.name for layer in found.layers if layer.leaves] == [CO_DINO[depth]]


def test_outputs_of_a_large_file_come_in_several_runs(co_dino, onnx_file, drawn, tmp_path):
    ((_, images, sizes),) = drawn
    patterns = ("encoder*", "proposals*")
    whole, pieces = (marked.marked_onnx(onnx_file, tmp_path, patterns, most) for most in (2**31, 2**21))
    expected, found = (engine.run(images, sizes) for engine in (whole, pieces))
    assert list(found) == list(expected)
    assert sum(isinstance(array, np.memmap) for array in found.values()) == len(found)
    for name, array in expected.items():
        # which outputs there are decides how ONNX Runtime rounds, and so the order of proposals of nearly equal scores
        is_of_proposals = array.shape[1:2] in ((co_dino.variant.num_queries,), (co_dino.variant.max_detections,))
        in_order = partial(np.sort, axis=1) if is_of_proposals else np.asarray
        np.testing.assert_allclose(in_order(found[name]), in_order(array), atol=1e-4, err_msg=name)
    model = onnx.load(onnx_file)
    mark_model(model, patterns)
    groups = marked.output_groups(model, 2**21)
    assert 1 < len(groups) < 8
    assert [name for group in groups for name in group] == list(expected)
    assert compare_layers(co_dino, pieces, drawn, "float32").first is None


@pytest.mark.slow
def test_a_package_is_compiled_again_with_marks():
    """The damage is the reference's, so that one package serves every depth."""
    detector = small_detector()
    engine = marked.marked_torch(copy.deepcopy(detector), InputSpec(HEIGHT, WIDTH, 1, dynamic_batch=False))
    assert "a package cannot be opened" in engine.what
    assert compare_layers(detector, engine, samples(), "float32").first is None
    for module in DEPTHS.values():
        for kind in KINDS:
            found = compare_layers(damaged(detector, module, kind), engine, samples(), "float32")
            assert found.first.name == module
            assert [layer.name for layer in found.layers if layer.leaves] == [module]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_package_is_named(kind):
    detector = small_detector()
    for module in DEPTHS.values():
        engine = marked.marked_torch(damaged(detector, module, kind), InputSpec(HEIGHT, WIDTH, 1, dynamic_batch=False))
        assert compare_layers(detector, engine, samples(), "float32").first.name == module


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_package_for_a_gpu_is_compiled_again_with_marks(precision):
    def in_half(reference):
        return None if precision == "float32" else copy.deepcopy(reference).set_precision(torch.float16)

    detector = small_detector().cuda()
    spec = InputSpec(HEIGHT, WIDTH, 1, dynamic_batch=False)
    engine = marked.marked_torch(in_half(detector) or copy.deepcopy(detector), spec)
    assert compare_layers(detector, engine, samples(), precision, in_half(detector)).first is None
    for module in DEPTHS.values():
        for kind in KINDS[:2]:
            reference = damaged(detector, module, kind)
            assert compare_layers(reference, engine, samples(), precision, in_half(reference)).first.name == module


class Plans:
    """Stands in for TensorRT in another process: runs the ONNX that it was given to build a plan of."""

    def __init__(self, version="10.16"):
        self.version, self.built = version, []

    def ask(self, request, log):
        if request["task"] == "version":
            return {"tensorrt": self.version}
        if request["task"] == "build":
            self.built.append(request)
            Path(request["plan"]).write_bytes(Path(request["onnx"]).read_bytes())
            return {"tensorrt": self.version, "layers": None}
        assert request["task"] == "read"
        import onnxruntime

        session = onnxruntime.InferenceSession(request["plan"])
        with np.load(request["inputs"]) as arrays:
            given = {each.name: arrays[f"{each.name}_0"] for each in session.get_inputs()}
        names = [each.name for each in session.get_outputs()]
        made = dict(zip(names, session.run(names, given), strict=True))
        np.savez(request["outputs"], **{f"{name}_0": array for name, array in made.items()})
        return {"tensorrt": self.version}


SPEC = InputSpec(HEIGHT, WIDTH, 2)


@pytest.fixture(scope="module")
def plan_onnx(tmp_path_factory):
    """The small detector's program as the frontend writes it; it has no deformable attention."""
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    program = export_detector(small_detector(), SPEC)
    build(program, path)
    return program, path


@pytest.fixture
def trt(monkeypatch, plan_onnx):
    plans = Plans()
    monkeypatch.setattr(TensorRTPython, "ask", lambda self, request, log: plans.ask(request, log))
    monkeypatch.setattr(onnx_frontend, "write_onnx", lambda program, path, version: shutil.copy(plan_onnx[1], path))
    return plans


def test_the_damaged_layer_of_a_plan_is_named(trt, plan_onnx, tmp_path):
    """Through the plan's path up to TensorRT, in whose place stands ONNX Runtime."""
    detector, python, program = small_detector(), TensorRTPython(Path("/a/python")), plan_onnx[0]
    engine = marked.marked_plan(program, SPEC, "float32", tmp_path, python=python)
    assert "TensorRT fuses nothing across them" in engine.what
    assert trt.built[0]["batch"] == [1, 2, 2]
    assert compare_layers(detector, engine, samples(1), "float32").first is None
    for module in DEPTHS.values():
        for kind in KINDS:
            found = compare_layers(damaged(detector, module, kind), engine, samples(1), "float32")
            assert found.first.name == module


def test_a_plan_is_read_by_the_outputs_that_it_kept(trt, plan_onnx, tmp_path):
    detector, python, program = small_detector(), TensorRTPython(Path("/a/python")), plan_onnx[0]
    model = onnx.load(plan_onnx[1])
    mark_outputs(model, ["encoder.norm2", "decoder.norm2"])
    onnx.save(model, tmp_path / "kept.plan")
    engine = marked.marked_plan(program, SPEC, "float32", tmp_path, python=python, built=tmp_path / "kept.plan")
    assert engine.is_the_engine
    assert trt.built == []
    found = compare_layers(detector, engine, samples(1), "float32")
    layers = {layer.name: layer for layer in found.layers}
    assert list(layers) == ["encoder.norm2", "decoder.norm2", "boxes", "scores", "labels"]
    assert layers["encoder.norm2"].comparable
    assert "proposals.choice, which the engine does not tell" in layers["decoder.norm2"].note


def test_a_real_parser_takes_the_marks(monkeypatch, plan_onnx, tmp_path):
    """TensorRT-RTX reads ONNX and builds without a GPU, as TensorRT does not; it cannot run what it built."""
    root = Path(__file__).parents[3]
    if not (root / "build/tensorrt-rtx/tensorrt_rtx_bindings").is_dir():
        pytest.skip("no TensorRT-RTX in build/tensorrt-rtx; make build/tensorrt-rtx/.installed fetches it")
    monkeypatch.setattr(onnx_frontend, "write_onnx", lambda program, path, version: shutil.copy(plan_onnx[1], path))
    monkeypatch.setattr(route, "version_of", lambda python: "11.1")  # this Python itself has none
    folders = (root / "tests/builder/engines/tensorrt/rtx_as_tensorrt", root / "build/tensorrt-rtx")
    path = os.pathsep.join(map(str, folders))
    python = TensorRTPython(environment={**os.environ, "PYTHONPATH": path})
    engine = marked.marked_plan(plan_onnx[0], SPEC, "float32", tmp_path, python=python)
    assert (tmp_path / "marked.plan").stat().st_size > 1000
    assert len(names_of(engine.marks)) > 20


def test_modules_of_plugin_nodes_are_marked(monkeypatch, tmp_path):
    built = []
    monkeypatch.setattr(route, "version_of", lambda python: "11.1")
    monkeypatch.setattr(marked, "plugin_library", lambda: Path("libcodetr_plugin.so"))
    monkeypatch.setattr(onnx_frontend, "build_plan", lambda file, *arguments, **options: built.append(onnx.load(file)))
    engine = marked.marked_plan(windowed.exported(), windowed.SPEC, "float16", tmp_path)
    assert [node.op_type for node in built[0].graph.node].count(interface.WINDOW_PLUGIN_NAME) == 2
    block = "backbone.stages.0.blocks.1.attn"
    assert {block, f"{block}.qkv", f"{block}.proj"} <= set(engine.marks.returned)


def test_a_plan_with_window_attention_written_out_is_made_again_so(monkeypatch, tmp_path):
    def write(program, path, version):
        assert not uses_operator(program)
        raise FileNotFoundError("far enough")

    monkeypatch.setattr(route, "version_of", lambda python: "11.1")
    monkeypatch.setattr(onnx_frontend, "write_onnx", write)
    settings = TensorRTSettings(window_attention="written-out")
    with pytest.raises(FileNotFoundError, match="far enough"):
        marked.marked_plan(windowed.exported(), windowed.SPEC, "float16", tmp_path, settings=settings)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_the_damaged_layer_of_a_real_plan_is_named(tmp_path, kind):
    """TensorRT in the Python that CODETR_TENSORRT_PYTHON names."""
    if "CODETR_TENSORRT_PYTHON" not in os.environ:
        pytest.skip("CODETR_TENSORRT_PYTHON is not set: it names a Python that has TensorRT")
    detector = small_detector()
    for module in DEPTHS.values():
        (tmp_path / module).mkdir()
        program = export_detector(damaged(detector, module, kind), SPEC)
        engine = marked.marked_plan(
            program, SPEC, "float32", tmp_path / module, python=route.python_of(TensorRTSettings())
        )
        assert compare_layers(detector, engine, samples(1), "float32").first.name == module


def test_half_types_come_as_float32():
    assert marked._array(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32
    assert marked._array(torch.ones(2, dtype=torch.int32)).dtype == np.int32
