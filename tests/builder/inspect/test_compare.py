"""Repositories compared: the ONNX one that the tests build once, and others of its manifest with other engines."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from builder.engines import EngineError
from builder.engines import torch as torch_engine
from builder.engines.tensorrt import plans
from builder.inspect import compare, describe
from builder.inspect.anatomy import Anatomy
from builder.inspect.compare import compare_repository
from builder.inspect.describe import describe_repository
from builder.inspect.marked import MarkedEngine, marked_onnx
from builder.pipeline.build import BuildOptions, build_repository
from builder.pipeline.export import InputSpec
from builder.variants import from_mmdet_config
from serving.errors import CodetrError
from tests.builder.inspect.damage import damage_onnx
from tests.builder.inspect.small import KINDS
from tests.conftest import HEIGHT, WIDTH

LAYER = "encoder.layers.0.ffn.0"


@pytest.fixture
def copied(repository, tmp_path):
    """A copy that may be changed."""
    return Path(shutil.copytree(repository, tmp_path / "repository"))


@pytest.fixture(scope="module")
def other_weights(checkpoint, tmp_path_factory):
    """The checkpoint with one layer times 1.01."""
    path = tmp_path_factory.mktemp("weights") / "other.pth"
    content = torch.load(checkpoint)
    ending = "transformer.encoder.layers.0.ffns.0.layers.0.0.weight"
    (key,) = [key for key in content["state_dict"] if key.endswith(ending)]
    content["state_dict"][key] = content["state_dict"][key] * 1.01
    torch.save(content, path)
    return path


def test_an_onnx_repository_agrees_with_its_checkpoint(repository, checkpoint):
    stages = []
    found = compare_repository(
        repository, "codetr", checkpoint, count=1, stage=lambda name: stages.append(name) or _nothing()
    )
    assert found.first is None
    assert found.notes == []
    assert found.samples == ["shapes-0"]
    assert found.unmarked < 1e-4, "the copy with marks is the engine"
    assert stages == ["load weights", "mark outputs", "compare"]


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_a_damaged_file_is_compared_and_noted(copied, checkpoint):
    file = copied / "codetr_detector" / "1" / "model.onnx"
    damage_onnx(file, file, LAYER, KINDS[0])
    found = compare_repository(copied, "codetr", checkpoint, count=1, modules=["encoder*"])
    assert found.first.name == LAYER
    assert "is not the file that was built" in found.notes[0]


def test_other_weights_are_found_by_their_layer_and_noted(repository, other_weights, checkpoint):
    found = compare_repository(repository, "codetr", other_weights, count=1, modules=["encoder*"])
    assert found.first.name == LAYER
    assert f"was built from {checkpoint.name}" in found.notes[0]
    assert "it is made again" not in found.notes[0], "an ONNX file is looked at itself"


def test_own_pictures_are_taken(repository, checkpoint, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((50, 80, 3), 60 * i, np.uint8))
    found = compare_repository(repository, "codetr", checkpoint, images=folder, count=2, modules=["class_head"])
    assert found.samples == ["0.png", "1.png"]
    found = compare_repository(repository, "codetr", checkpoint, images=folder / "2.png", modules=["class_head"])
    assert found.samples == ["2.png"]
    assert not found.notes
    found = compare_repository(repository, "codetr", checkpoint, images=folder, count=4, modules=["class_head"])
    assert found.notes == [f"{folder} holds 3 images, fewer than 4"]


def test_pictures_that_are_not_there_are_named_before_weights_are_loaded(repository, tmp_path):
    with pytest.raises(CodetrError, match=r"nothing at absent\.jpg; name a picture or a folder of them to compare on"):
        compare_repository(repository, "codetr", Path("absent.pth"), images=Path("absent.jpg"))
    with pytest.raises(CodetrError, match=r"holds no images \(.*\) to compare on"):
        compare_repository(repository, "codetr", Path("absent.pth"), images=tmp_path)


def test_what_cannot_be_compared_is_refused(copied, checkpoint):
    with pytest.raises(CodetrError, match=r"give its weights: the engine was built from tiny\.pth"):
        compare_repository(copied, "codetr", None)
    with pytest.raises(CodetrError, match="0 samples are too few; expected at least 1"):
        compare_repository(copied, "codetr", checkpoint, count=0)
    with pytest.raises(CodetrError, match="no module is called nothing"):
        compare_repository(copied, "codetr", checkpoint, modules=["nothing"])
    with pytest.raises(CodetrError, match="is of kind onnx; only a plan can keep marked outputs"):
        compare_repository(copied, "codetr", checkpoint, as_built=True)
    (copied / "codetr_detector" / "1" / "model.onnx").unlink()
    with pytest.raises(CodetrError, match=r"model\.onnx is missing; build the repository again"):
        compare_repository(copied, "codetr", checkpoint)


@pytest.fixture
def as_kind(copied, monkeypatch):
    """Make the copy's manifest one of another kind, with an empty engine file."""

    def make(**changes):
        path = copied / "codetr_detector" / "manifest.json"
        manifest = json.loads(path.read_text()) | changes
        path.write_text(json.dumps(manifest))
        name = {"torch": "model.pt2", "tensorrt": "model.plan"}[changes["engine"]]
        (copied / "codetr_detector" / "1" / name).write_bytes(b"engine")
        return copied / "codetr_detector" / "1" / name

    return make


@pytest.fixture
def made(monkeypatch, repository, tmp_path):
    """What engines are made again from: each as the ONNX file, which stands in for it."""
    asked = []
    file = repository / "codetr_detector" / "1" / "model.onnx"

    def again(*arguments, **options):
        asked.append((arguments, options))
        engine = marked_onnx(file, tmp_path, ["class_head"])
        return MarkedEngine(engine.marks, engine.run, "made again", options.get("built") is not None)

    monkeypatch.setattr(compare, "marked_torch", again)
    monkeypatch.setattr(compare, "marked_plan", again)
    monkeypatch.setattr(compare, "export_detector", lambda detector, spec: ("program", detector, spec))
    return asked


def test_a_package_is_made_again_from_what_it_was_built_from(
    copied, as_kind, made, checkpoint, other_weights, monkeypatch
):
    as_kind(engine="torch", precision="bfloat16")
    far = SimpleNamespace(scores=np.zeros((1, 300), np.float32))
    monkeypatch.setattr(compare, "load_engine", lambda *arguments: lambda images, sizes: far)
    monkeypatch.setattr(compare, "weights_of", lambda path, expected: {})
    found = compare_repository(copied, "codetr", checkpoint, built_from=other_weights, count=1)
    (((detector, spec, modules), _),) = made
    assert detector.dtype == torch.bfloat16
    assert (spec.max_batch_size, spec.is_dynamic, modules) == (1, False, ("*",))
    reference = compare._detector(detector.variant, other_weights, {"weights": None})
    assert torch.equal(reference.encoder.layers[0].ffn[0].weight.bfloat16(), detector.encoder.layers[0].ffn[0].weight)
    assert "own weights could not be read, so it was made again from the checkpoint's" in found.notes[-2]
    assert "It was built from other weights" in found.notes[-1]
    assert found.unmarked > 0.1


def test_a_package_is_made_again_with_its_own_weights(copied, as_kind, made, checkpoint, monkeypatch):
    file = as_kind(engine="torch")
    asked = []

    def held(path, expected):
        asked.append(path)
        return {name: expected[name] + (name == f"{LAYER}.bias") for name in (f"{LAYER}.weight", f"{LAYER}.bias")}

    monkeypatch.setattr(compare, "weights_of", held)
    monkeypatch.setattr(compare, "load_engine", lambda *arguments: (_ for _ in ()).throw(EngineError("none")))
    found = compare_repository(copied, "codetr", checkpoint, count=1)
    (((detector, *_), _),) = made
    reference = compare._detector(detector.variant, checkpoint, {"weights": None})
    assert asked == [file]
    assert torch.equal(detector.encoder.layers[0].ffn[0].bias, reference.encoder.layers[0].ffn[0].bias + 1)
    (note,) = [note for note in found.notes if "own weights" in note]
    assert note.endswith(f"of which 1 are not the checkpoint's: {LAYER}.bias")


def test_a_plan_is_made_again_or_read_as_it_was_built(copied, as_kind, made, checkpoint, monkeypatch):
    plan = as_kind(engine="tensorrt", device="cuda", window_attention="plugin")
    monkeypatch.setattr(compare, "load_engine", lambda *arguments: (_ for _ in ()).throw(EngineError("no GPU")))
    found = compare_repository(copied, "codetr", checkpoint, python=Path("/a/python"), count=1)
    (program, spec, precision, _), options = made[0]
    assert (program[0], spec.max_batch_size, precision, options["built"]) == ("program", 8, "float32", None)
    assert options["python"].executable == Path("/a/python")
    assert options["settings"].window_attention == "plugin"
    assert "did not run here, so that only the marked one was compared: no GPU" in found.notes[-1]
    found = compare_repository(copied, "codetr", checkpoint, as_built=True, count=1)
    assert made[1][1]["built"] == plan
    assert found.unmarked is None


def test_a_quantised_engine_has_wide_tolerances_or_cannot_be_made_again(copied, as_kind, repository, checkpoint):
    path = copied / "codetr_detector" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "int8"}))
    found = compare_repository(copied, "codetr", checkpoint, count=1, modules=["class_head"])
    assert found.layers[0].own_limit == 1e-1
    as_kind(engine="tensorrt", precision="fp8")
    with pytest.raises(CodetrError, match="is quantised to fp8, and cannot be made again with marked outputs"):
        compare_repository(copied, "codetr", checkpoint)


def test_a_package_for_a_gpu_needs_one(copied, as_kind, checkpoint, monkeypatch):
    as_kind(engine="torch", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=r"model\.pt2 was compiled for an NVIDIA GPU; PyTorch finds none here"):
        compare_repository(copied, "codetr", checkpoint, count=1)


def test_an_onnx_repository_is_described(repository):
    found = describe_repository(repository, "codetr", batch=2, runs=1)
    assert found.batch == 2
    assert found.has_times
    assert found.title.endswith("onnx engine in float32, 96x136, batch 2")
    assert "torch" in found.versions
    with pytest.raises(CodetrError, match="batch 9 is not one of the engine's, which are 1 to 8"):
        describe_repository(repository, "codetr", batch=9)


def test_a_package_is_timed_as_a_whole_and_made_again_for_its_kernels(copied, as_kind, checkpoint, monkeypatch):
    file = as_kind(engine="torch")
    asked = []
    monkeypatch.setattr(
        describe, "_runner", lambda path, spec, place: SimpleNamespace(prepare=lambda *inputs: asked.append)
    )
    monkeypatch.setattr(describe, "median_ms", lambda *arguments: 12.5)
    monkeypatch.setattr(describe, "kernel_times", lambda run, place, runs: {"a": [1.0]})

    def package(path, title, versions, inputs, outputs, batch, times=None, total_ms=None, notes=()):
        asked.append((path, times, total_ms, notes))
        return Anatomy("torch", title, str(path), 1, {}, (), (), (), {}, total_ms, batch, tuple(notes))

    monkeypatch.setattr(describe, "describe_package", package)
    monkeypatch.setattr(describe, "export_detector", lambda detector, spec: detector)
    monkeypatch.setattr(describe, "decompose_operator", lambda program: program)
    monkeypatch.setattr(torch_engine, "compile_package", lambda program, path, place, profiled: asked.append(profiled))
    found = describe_repository(copied, "codetr")
    assert asked.pop()[:3] == (file, None, 12.5)
    assert "with its weights the same program is compiled again" in found.notes[0]
    found = describe_repository(copied, "codetr", weights=checkpoint)
    path, times, total, _ = asked.pop()
    assert asked == [True], "for a profiler"
    assert (path != file, times, total) == (True, {"a": [1.0]}, 12.5)
    assert (found.file, found.file_bytes) == (str(file), 6)
    as_kind(engine="torch", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "nothing is timed" in describe_repository(copied, "codetr").notes[0]


def test_a_plan_is_asked_in_the_python_that_has_tensorrt(copied, as_kind, monkeypatch):
    file = as_kind(engine="tensorrt", device="cuda")
    asked = []

    def told(plan, images, sizes, plugin, python, runs):
        asked.append((plan, images.shape, plugin, python.executable, runs))
        layer = {"Name": "a", "LayerType": "conv", "Inputs": [], "Outputs": []}
        return {"information": {"Layers": [layer]}, "times_ms": {"a": 1.0}, "activation_bytes": 5, "tensorrt": "10.16"}

    monkeypatch.setattr(plans, "inspect_plan", told)
    found = describe_repository(copied, "codetr", batch=3, runs=2, python=Path("/a/python"))
    assert asked == [(file, (3, 96, 136, 3), None, Path("/a/python"), 2)]
    assert (found.engine, found.parts[0].name, found.versions["tensorrt"]) == ("tensorrt", "a", "10.16")


@pytest.mark.slow
def test_a_real_package_is_compared_with_what_it_should_have_been(shallow_config, checkpoint, other_weights, tmp_path):
    """Built from weights of which one layer is times 1.01; the package agrees with the one that is made again."""
    variant = from_mmdet_config(shallow_config)
    options = BuildOptions(variant, InputSpec(HEIGHT, WIDTH, 2), other_weights, engine="torch", skip_verification=True)
    build_repository(options, tmp_path / "repository")
    found = compare_repository(tmp_path / "repository", "codetr", checkpoint, count=1)
    assert found.first.name == LAYER
    assert [layer.name for layer in found.layers if layer.leaves] == [LAYER]
    assert found.unmarked < 2e-3
    assert f"of which 1 are not the checkpoint's: {LAYER}.weight" in found.notes[1]
    assert {"backbone.patch_embed", "proposals.choice", "decoder.norm"} <= {layer.name for layer in found.layers}
    described = describe_repository(tmp_path / "repository", "codetr", runs=2)
    assert described.total_ms > 0
    assert {"addmm", "convolution", "topk"} <= {part.kind for part in described.parts}
