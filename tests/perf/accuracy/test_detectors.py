import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from builder.checkpoint import random_detector
from builder.engines import EngineOutput
from builder.pipeline.export import InputSpec
from builder.pipeline.manifest import describe
from perf.accuracy.detectors import Setup, built_variant, onnx_detect, pytorch_detect
from serving.errors import CodetrError
from serving.manifest import FILES, manifest_path
from serving.rules import Rules, Suppression
from tests.smallest import SMALLEST, built


@pytest.fixture(scope="module")
def image() -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("rule", "count"), [(Suppression("none"), SMALLEST.max_detections), (Suppression(score_threshold=1), 0)]
)
def test_the_variants_suppression_decides(
    monkeypatch: pytest.MonkeyPatch, image: bytes, rule: Suppression, count: int
) -> None:
    variant = replace(SMALLEST, input_size=(64, 96), rules=Rules(suppression=rule))
    monkeypatch.setattr("builder.checkpoint.load_detector", lambda *args: random_detector(variant, 0))
    detect, _ = pytorch_detect("any", Path("any"), "float32", "cpu")
    assert len(detect(image)) == count


def test_the_engines_setup_decides_over_the_variants(monkeypatch: pytest.MonkeyPatch, image: bytes) -> None:
    """An engine of another size than the variant's usual one is compared at its own."""
    variant = replace(SMALLEST, input_size=(64, 96))
    detector = random_detector(variant, 0)
    seen = []
    detector.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    monkeypatch.setattr("builder.checkpoint.load_detector", lambda *args: detector)
    detect, _ = pytorch_detect(
        "any", Path("any"), "float32", "cpu", Setup(32, 64, Rules(suppression=Suppression(score_threshold=1)))
    )
    assert len(detect(image)) == 0
    pytorch_detect("any", Path("any"), "float32", "cpu")[0](image)
    assert seen == [(1, 32, 64, 3), (1, 64, 96, 3)]


def test_float32_is_computed_without_tf32(monkeypatch: pytest.MonkeyPatch, image: bytes) -> None:
    detector, seen = random_detector(replace(SMALLEST, input_size=(64, 96)), 0), []

    def look(*_: object) -> None:
        seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))

    detector.register_forward_pre_hook(look)
    monkeypatch.setattr("builder.checkpoint.load_detector", lambda *args: detector)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    pytorch_detect("any", Path("any"), "float32", "cpu")[0](image)
    assert seen == [(False, "highest")]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a manifest and an engine file alone."""
    variant = replace(SMALLEST, class_names=("a", "b", "c", "d"), rules=Rules(suppression=Suppression("hard", 0.5)))
    manifest = describe(variant, None, 0, built(), "float32", InputSpec(48, 80), None)
    (tmp_path / "codetr_detector" / "1").mkdir(parents=True)
    manifest_path(tmp_path).write_text(json.dumps({**manifest, FILES: {}}), encoding="utf-8")
    return tmp_path


def test_an_onnx_engine_has_its_manifests_names_size_and_rules(
    repository: Path, monkeypatch: pytest.MonkeyPatch, image: bytes
) -> None:
    def run(images: np.ndarray, image_sizes: np.ndarray) -> EngineOutput:
        assert images.shape == (1, 48, 80, 3)
        box = np.array([0.1, 0.1, 0.5, 0.5], np.float32)  # twice the same: the rule keeps one
        return EngineOutput(np.tile(box, (1, 2, 1)), np.array([[0.9, 0.8]], np.float32), np.array([[2, 2]], np.int32))

    (repository / "codetr_detector" / "1" / "model.onnx").touch()
    monkeypatch.setattr("builder.engines.onnx.load", lambda path, spec, device: run)
    detect, names = onnx_detect(repository, "codetr")
    assert names == ("a", "b", "c", "d")
    assert detect(image).names == ("c",)
    assert built_variant(repository, "codetr")[1] == Setup(48, 80, Rules(suppression=Suppression("hard", 0.5)))


def test_an_engine_that_is_not_there_or_of_another_kind_is_named(repository: Path) -> None:
    with pytest.raises(CodetrError, match=r"no ONNX engine at .*model\.onnx"):
        onnx_detect(repository, "codetr")
    path = manifest_path(repository)
    path.write_text(path.read_text().replace('"engine": "onnx"', '"engine": "torch"'))
    with pytest.raises(CodetrError, match="is a torch engine, expected onnx"):
        onnx_detect(repository, "codetr")
