import platform
from pathlib import Path
from types import SimpleNamespace

import pytest

from builder.pipeline import recheck
from builder.pipeline.export import InputSpec
from builder.pipeline.manifest import describe
from builder.pipeline.verify import Verification
from serving.errors import CodetrError
from tests.smallest import SMALLEST, built


def test_a_package_for_another_cpu_is_refused_before_it_is_loaded(monkeypatch):
    manifest = describe(SMALLEST, None, 0, built("torch"), "float32", InputSpec(64, 96, 2), None)
    manifest["cpu"] = {"machine": platform.machine(), "features": ["avx1024"]}
    monkeypatch.setattr(recheck, "check_files", lambda *args: None)
    monkeypatch.setattr(recheck, "check_described", lambda *args: None)
    monkeypatch.setattr(recheck, "read_manifest", lambda *args: manifest)
    with pytest.raises(CodetrError, match="the engine codetr in repository was built for a CPU with avx1024"):
        recheck.verify_repository(Path("repository"), "codetr")


@pytest.mark.parametrize("machine", ["cpu", "cuda"])
def test_the_detector_lies_where_the_engine_runs_whatever_the_machine_has(machine, monkeypatch):
    """A stand-in for an engine on a device called meta, which every machine has."""
    compared = []
    manifest = describe(SMALLEST, None, 0, built("torch", "cuda"), "float32", InputSpec(64, 96, 2), None)
    monkeypatch.setattr("builder.engines.torch.device", lambda: machine)
    monkeypatch.setattr(
        "builder.engines.torch.load",
        lambda path, spec, device, settings: SimpleNamespace(device="meta", path=path, place=device),
    )

    def compare(detector, run, *rest):
        compared.append((next(detector.parameters()).device.type, run.path, run.place))
        return SimpleNamespace(check=lambda hint: Verification(1, 1, 1.0, 1.0, 0.0, 0.0, 1.0, None))

    monkeypatch.setattr(recheck, "check_files", lambda *args: None)
    monkeypatch.setattr(recheck, "check_described", lambda *args: None)
    monkeypatch.setattr(recheck, "read_manifest", lambda *args: manifest)
    monkeypatch.setattr(recheck, "sample_images", lambda *args: None)
    monkeypatch.setattr(recheck, "compare_engine", compare)
    recheck.verify_repository(Path("repository"), "codetr")
    assert compared == [("meta", Path("repository/codetr_detector/1/model.pt2"), "cuda")]
