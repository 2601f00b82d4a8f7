"""The families side by side in one repository: each ensemble answers by its own network, pixels and rules."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch  # after the check for it

from builder import families
from builder.pipeline.build import BuildOptions, build_repository
from builder.pipeline.export import InputSpec
from builder.variants import from_mmdet_config
from codetr_client.client import CoDetrClient
from demo.shapes.dataset import encode_jpeg
from demo.shapes.draw import generate
from perf.accuracy.detectors import built_variant, pytorch_detect, server_detect, server_setup
from serving.launch import TritonServer, running_server
from serving.manifest import read_manifest
from tests.conftest import DATA
from tests.toy_family import SMALL, TOY, toy_weights

# Ensemble: its reference data, and a size (height, width) that its images do not have. Co-DINO's is the engine `codetr`
# of the common repository.
FAMILIES = {
    "rtdetrv2": ("golden_rtdetrv2_tiny.npz", (96, 160)),
    "detr": ("golden_detr_tiny.npz", (128, 160)),
}
ENSEMBLES = ("codetr", *FAMILIES, "toy")  # and the family that only the tests know


def variant_and_weights(file: str) -> tuple[Any, dict[str, Any]]:
    """The detector of reference data."""
    with np.load(DATA / file) as golden:
        variant = from_mmdet_config(json.loads(bytes(golden["config_json"]).decode()))
        weights = {key[3:]: torch.from_numpy(golden[key]) for key in golden if key.startswith("sd/")}
    return variant, weights


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.FAMILIES, "toy", TOY)
        yield


@pytest.fixture(scope="module")
def checkpoints(checkpoint: Path, built_once: Callable[..., Path]) -> dict[str, Path]:
    def save(name: str) -> Path:
        # nested as each family's training program saves it
        weights = toy_weights() if name == "toy" else variant_and_weights(FAMILIES[name][0])[1]
        nested = {"rtdetrv2": {"ema": {"module": weights}}, "detr": {"model": weights}}.get(name, weights)
        return built_once(f"{name}.pth", lambda path: torch.save(nested, path))

    return {"codetr": checkpoint, **{name: save(name) for name in (*FAMILIES, "toy")}}


@pytest.fixture(scope="module")
def all_families(checkpoints: dict[str, Path], repository: Path, built_once: Callable[..., Path]) -> Path:
    """A repository with an engine of each family."""

    def write(path: Path) -> None:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            growing = Path(shutil.copytree(repository, Path(folder, "repository")))
            for name, (file, (height, width)) in FAMILIES.items():
                variant, _ = variant_and_weights(file)
                # no edge of DETR's usual rule fits so small an input
                pixels = replace(variant.rules.pixels, shortest_edge=80, longest_edge=133) if name == "detr" else None
                if pixels is not None:
                    variant = replace(variant, rules=replace(variant.rules, pixels=pixels))
                build_repository(
                    BuildOptions(variant, InputSpec(height, width, 2), checkpoints[name], name=name), growing
                )
            build_repository(BuildOptions(SMALL, InputSpec(64, 96, 2), checkpoints["toy"], name="toy"), growing)
            growing.rename(path)

    return built_once("families", write)


@pytest.fixture(scope="module")
def together(all_families: Path) -> Iterator[TritonServer]:
    with running_server(all_families) as server:
        yield server


def test_each_family_is_built(all_families: Path) -> None:
    for name in ENSEMBLES:
        assert read_manifest(all_families, name)["verification"]["matched"] == 1


@pytest.mark.server
@pytest.mark.parametrize("name", ENSEMBLES)
def test_each_family_answers_as_its_detector_in_pytorch(
    together: TritonServer, checkpoints: dict[str, Path], name: str
) -> None:
    image = encode_jpeg(generate(2, 5).image)
    variant, built = built_variant(together.options.repository, name)
    setup = server_setup(together.grpc_url, "grpc", 30.0, name)
    assert (setup.height, setup.width, setup.rules.pixels) == (built.height, built.width, variant.rules.pixels)
    detect, names = pytorch_detect(variant, checkpoints[name], "float32", "cpu", setup)
    expected = detect(image)
    with CoDetrClient(together.grpc_url, model=name) as client:
        found = server_detect(client)(image)
        assert client.class_names() == names
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    # by score, which no two candidates share that matter
    same = np.abs(np.diff(expected.scores, append=-1)) > 1e-3
    np.testing.assert_array_equal(found.labels[same], expected.labels[same])
    np.testing.assert_allclose(found.boxes[same], expected.boxes[same], atol=0.05)


@pytest.mark.server
def test_rules_of_each_family_reach_the_server(together: TritonServer) -> None:
    setups = {name: server_setup(together.grpc_url, "grpc", 30.0, name) for name in ENSEMBLES}
    assert {name: setup.rules.pixels.resize for name, setup in setups.items()} == {
        "codetr": "fit",
        "rtdetrv2": "stretch",
        "detr": "fit",
        "toy": "stretch",
    }
    assert {name: setup.rules.pixels.antialias for name, setup in setups.items()} == {
        "codetr": False,
        "rtdetrv2": True,
        "detr": True,
        "toy": True,
    }
    assert {name: (setup.rules.suppression.kind, setup.rules.suppression.clip) for name, setup in setups.items()} == {
        "codetr": ("none", True),  # the reference data has no suppression
        "rtdetrv2": ("none", False),
        "detr": ("none", False),
        "toy": ("hard", False),
    }
