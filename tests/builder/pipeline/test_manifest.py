import hashlib
import json
from dataclasses import replace

import pytest
import torch

from builder.engines.kinds import PLAN_IN_PYTHON, BuiltEngine
from builder.engines.tensorrt import TensorRTSettings
from builder.operators import interface
from builder.pipeline.build import BuildOptions, build_repository
from builder.pipeline.export import INPUT_NAMES, OUTPUT_NAMES, InputSpec
from builder.pipeline.manifest import describe, device_of, inputs_of, load_engine, variant_of, window_attention_of
from builder.variants import get_variant
from serving.manifest import cpu, read_manifest
from serving.rules import Pixels, Rules, Suppression
from tests.smallest import SMALLEST, built

SPEC = InputSpec(64, 96)
OTHER_RULES = replace(
    SMALLEST, rules=Rules(suppression=Suppression("hard", 0.5, class_agnostic=True)), lsj_padding=None
)
DETR_RULES = replace(SMALLEST, rules=Rules(Pixels("fit", True, 800, 1333), Suppression("none", clip=False)))


def described(engine):
    return describe(SMALLEST, None, 0, built(engine), "float32", SPEC, None)


def test_a_gpu_is_named_with_its_compute_capability(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert {described("torch")[key] for key in ("gpu", "compute_capability")} == {None}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    manifest = described("torch")
    assert (manifest["gpu"], manifest["compute_capability"]) == ("NVIDIA H200", "9.0")


@pytest.mark.parametrize("variant", [SMALLEST, OTHER_RULES, DETR_RULES, get_variant("co_dino_r50_lsj_12e")])
def test_a_variant_comes_back_from_its_manifest(variant):
    manifest = describe(variant, None, 0, built(), "float32", SPEC, None)
    assert variant_of(json.loads(json.dumps(manifest))) == variant


def test_manifests_of_before_have_no_rules():
    manifest = json.loads(json.dumps(described("onnx")))
    for key in ("rules", "lsj_padding"):
        del manifest["network"][key]
    assert variant_of(manifest) == SMALLEST
    manifest["network"]["suppression"] = {"kind": "hard", "iou_threshold": 0.5, "class_agnostic": True}
    assert variant_of(manifest).rules == OTHER_RULES.rules


def test_a_package_for_a_cpu_tells_what_the_cpu_can_do():
    assert described("torch")["cpu"] == {**cpu(), "capability": torch.backends.cpu.get_cpu_capability()}
    assert "cpu" not in described("onnx")
    for_a_gpu = describe(SMALLEST, None, 0, built("torch", "cuda"), "float32", SPEC, None)
    assert "cpu" not in for_a_gpu


def test_the_plugins_version_is_that_of_plans():
    assert described("tensorrt")["versions"]["plugin"] == interface.PLUGIN_VERSION
    assert "plugin" not in described("onnx")["versions"]
    assert {"python", "torch"} < described("onnx")["versions"].keys()


def test_the_inputs_that_the_engine_reads_are_declared():
    manifest = describe(SMALLEST, None, 0, built(inputs=("images",)), "float32", SPEC, None)
    assert inputs_of(manifest) == ("images",)
    del manifest["inputs"]
    assert inputs_of(manifest) == ("images", "image_sizes"), "before they were declared"


def test_weights_are_named_by_their_hash_and_random_ones_by_their_seed(tmp_path):
    (tmp_path / "my.pth").write_bytes(b"weights")
    trained = describe(SMALLEST, tmp_path / "my.pth", 7, built(), "float32", SPEC, None)
    assert trained["weights"] == {"file": "my.pth", "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert trained["seed"] is None
    random = describe(SMALLEST, None, 7, built(), "float32", SPEC, None)
    assert (random["weights"], random["seed"]) == (None, 7)


def test_a_plans_settings_for_other_machines_are_kept(tmp_path, monkeypatch):
    def build(program, path, settings):
        path.write_bytes(b"a plan")
        versions = {"tensorrt": "8.5.3.1"}
        return BuiltEngine(path, PLAN_IN_PYTHON, "cuda", INPUT_NAMES, OUTPUT_NAMES, (), versions, settings.frontend)

    for name, stand_in in (
        ("device", lambda: "cpu"),
        ("check", lambda uses_operator, settings: None),
        ("build", build),
    ):
        monkeypatch.setattr(f"builder.engines.tensorrt.{name}", stand_in)
    monkeypatch.setattr("builder.pipeline.build.export_detector", lambda detector, spec: None)
    settings = TensorRTSettings(hardware_compatible=True, frontend="onnx", window_attention="written-out")
    options = BuildOptions(SMALLEST, SPEC, engine="tensorrt", skip_verification=True, tensorrt=settings)
    build_repository(options, tmp_path / "repository")
    manifest = read_manifest(tmp_path / "repository")
    assert (manifest["hardware_compatible"], manifest["version_compatible"]) == (True, False)
    assert manifest["device"] == "cuda"
    assert (manifest["frontend"], manifest["plan_backend"]) == ("onnx", "python")
    assert manifest["versions"]["tensorrt"] == "8.5.3.1", "of the interpreter that built it"
    assert manifest["window_attention"] == window_attention_of(manifest) == "written-out"


def test_before_there_was_a_plugin_window_attention_was_written_out():
    assert window_attention_of({"engine": "tensorrt"}) == "written-out"
    assert window_attention_of({"engine": "tensorrt", "window_attention": "plugin"}) == "plugin"


@pytest.mark.parametrize(
    ("said", "frontend"), [({"frontend": "onnx"}, "onnx"), ({}, "torch-tensorrt")], ids=["said", "an older manifest"]
)
def test_a_plan_is_loaded_where_its_frontend_runs(tmp_path, monkeypatch, said, frontend):
    manifest = {"engine": "tensorrt", "device": "cuda", "height": 64, "width": 96, "max_batch_size": 2, "files": {}}
    folder = tmp_path / "codetr_detector"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({**manifest, **said}))
    loaded = []
    monkeypatch.setattr("builder.engines.tensorrt.load", lambda *arguments: loaded.append(arguments))
    load_engine(tmp_path, "codetr", read_manifest(tmp_path))
    settings = TensorRTSettings(frontend=frontend)
    assert loaded == [(folder / "1" / "model.plan", InputSpec(64, 96, 2), "cuda", settings)]
    load_engine(tmp_path, "codetr", read_manifest(tmp_path), batch=1)
    assert loaded[1][1] == InputSpec(64, 96, 1)


@pytest.mark.parametrize(
    ("manifest", "device"),
    [
        ({"device": "cuda", "files": {}}, "cuda"),
        ({"device": "cpu", "files": {"codetr_detector/1/some.so": ""}}, "cpu"),
        ({"files": {"codetr_detector/1/model.pt2": "", "codetr_detector/1/libcodetr_ms_deform_attn_x.so": ""}}, "cuda"),
        ({"files": {"codetr_detector/1/model.pt2": "", "codetr_detector/1/torch_runner.py": ""}}, "cpu"),
    ],
    ids=["declared cuda", "declared cpu", "an older one of a GPU", "an older one of a CPU"],
)
def test_where_an_engine_runs_is_what_its_manifest_declares(manifest, device):
    assert device_of(manifest) == device
