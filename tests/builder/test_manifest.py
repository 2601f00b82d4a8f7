import hashlib

from builder import plugin
from builder.build import BuildOptions, build_repository
from builder.engines.tensorrt import TensorRTSettings
from builder.export import InputSpec
from builder.manifest import describe
from serving.manifest import read_manifest
from tests.smallest import SMALLEST, stand_in_engine

SPEC = InputSpec(64, 96)


def described(engine):
    return describe(SMALLEST, None, 0, engine, "float32", SPEC, None)


def test_a_gpu_is_named_with_its_compute_capability(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert {described("torch")[key] for key in ("gpu", "compute_capability")} == {None}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (9, 0))
    manifest = described("torch")
    assert (manifest["gpu"], manifest["compute_capability"]) == ("NVIDIA H200", "9.0")


def test_the_plugins_version_is_that_of_plans():
    assert described("tensorrt")["versions"]["plugin"] == plugin.VERSION
    assert "plugin" not in described("onnx")["versions"]
    assert {"python", "torch"} < described("onnx")["versions"].keys()


def test_weights_are_named_by_their_hash_and_random_ones_by_their_seed(tmp_path):
    (tmp_path / "my.pth").write_bytes(b"weights")
    trained = describe(SMALLEST, tmp_path / "my.pth", 7, "onnx", "float32", SPEC, None)
    assert trained["weights"] == {"file": "my.pth", "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert trained["seed"] is None
    random = describe(SMALLEST, None, 7, "onnx", "float32", SPEC, None)
    assert (random["weights"], random["seed"]) == (None, 7)


def test_a_plans_settings_for_other_machines_are_kept(tmp_path, monkeypatch):
    compiler = stand_in_engine(
        FILE_NAME="model.plan", build=lambda program, path, settings: path.write_bytes(b"a plan")
    )
    monkeypatch.setattr("builder.build._engine", lambda options: compiler)
    monkeypatch.setattr("builder.build.export_detector", lambda detector, spec: None)
    monkeypatch.setattr("builder.engines.tensorrt.output_names", lambda: ("boxes", "scores", "labels"))
    settings = TensorRTSettings(hardware_compatible=True)
    options = BuildOptions(SMALLEST, SPEC, engine="tensorrt", skip_verification=True, tensorrt=settings)
    build_repository(options, tmp_path / "repository")
    manifest = read_manifest(tmp_path / "repository")
    assert (manifest["hardware_compatible"], manifest["version_compatible"]) == (True, False)
