"""The families side by side in one repository: each ensemble answers by its own network, pixels and rules."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import onnx
import torch  # after the check for it

from builder import families
from builder.engines.kinds import KINDS, BuiltEngine
from builder.inspect.compare import compare_repository
from builder.inspect.describe import describe_repository
from builder.pipeline.build import BuildOptions, build_repository
from builder.pipeline.export import INPUT_NAMES, OUTPUT_NAMES, InputSpec
from builder.pipeline.manifest import engine_file, inputs_of, spec_of, variant_of
from builder.pipeline.recheck import verify_repository
from builder.pipeline.repository import write_repository
from builder.variants import from_mmdet_config
from codetr_client.client import CoDetrClient
from demo.shapes.dataset import encode_jpeg
from demo.shapes.draw import generate
from perf.accuracy.detectors import built_variant, pytorch_detect, server_detect, server_setup
from serving.contract import DETECTOR, model_name
from serving.launch import TritonServer
from serving.manifest import read_manifest
from tests import shallow
from tests.e2e.conftest import killed_server
from tests.toy_family import SMALL, TOY, toy_weights

# Ensemble: its settings and weights, and a size (height, width) that the reference data's images do not have. Co-DINO's
# is the engine `codetr` of the common repository.
FAMILIES = {
    "rtdetrv2": (shallow.rtdetrv2, (96, 160)),
    "detr": (shallow.detr, (128, 160)),
}
OLDER = "rtdetrv2_older"  # RT-DETRv2 as it was built when every engine took image_sizes
ENSEMBLES = ("codetr", *FAMILIES, "toy", OLDER)  # and the family that only the tests know
# Of that build's detector; the other models were what they are.
OLDER_MODEL = """
import json
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as pb_utils

from serving.contract import DETECTOR, contract
from serving.triton import OnnxSettings, parse_settings, respond_together


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = parse_settings(OnnxSettings, config).threads
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.outputs = [tensor.name for tensor in contract(1, 1)[DETECTOR].outputs]
        self.max_batch_size = config["max_batch_size"]

    def execute(self, requests):
        return respond_together(pb_utils, requests, self.run, self.max_batch_size)

    def run(self, images, image_sizes):
        boxes, scores, labels = self.session.run(self.outputs, {"images": images, "image_sizes": image_sizes})
        return boxes, scores, labels
"""


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.FAMILIES, "toy", TOY)
        yield


@pytest.fixture(scope="module")
def checkpoints(checkpoint: Path, built_once: Callable[..., Path]) -> dict[str, Path]:
    def save(name: str) -> Path:
        # nested as each family's training program saves it
        weights = toy_weights() if name == "toy" else FAMILIES[name][0]()[1]
        nested = {"rtdetrv2": {"ema": {"module": weights}}, "detr": {"model": weights}}.get(name, weights)
        return built_once(f"{name}.pth", lambda path: torch.save(nested, path))

    saved = {name: save(name) for name in (*FAMILIES, "toy")}
    return {"codetr": checkpoint, **saved, OLDER: saved["rtdetrv2"]}


@pytest.fixture(scope="module")
def all_families(checkpoints: dict[str, Path], repository: Path, built_once: Callable[..., Path]) -> Path:
    """A repository with an engine of each family."""

    def write(path: Path) -> None:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            growing = Path(shutil.copytree(repository, Path(folder, "repository")))
            for name, (reference, (height, width)) in FAMILIES.items():
                variant = from_mmdet_config(reference()[0])
                # no edge of DETR's usual rule fits so small an input
                pixels = replace(variant.rules.pixels, shortest_edge=80, longest_edge=133) if name == "detr" else None
                if pixels is not None:
                    variant = replace(variant, rules=replace(variant.rules, pixels=pixels))
                build_repository(
                    BuildOptions(variant, InputSpec(height, width, 2), checkpoints[name], name=name), growing
                )
            build_repository(BuildOptions(SMALL, InputSpec(64, 96, 2), checkpoints["toy"], name="toy"), growing)
            add_older(growing, Path(folder, "older.onnx"))
            growing.rename(path)

    return built_once("families", write)


def add_older(repository: Path, file: Path) -> None:
    """Add the engine `rtdetrv2` once more: with an input that nothing reads, which its manifest does not mention."""
    manifest = read_manifest(repository, "rtdetrv2") | {"schema": 3}
    del manifest["inputs"]
    model = onnx.load(engine_file(repository, "rtdetrv2", KINDS["onnx"]))
    model.graph.input.append(onnx.helper.make_tensor_value_info("image_sizes", onnx.TensorProto.INT32, ["batch", 2]))
    onnx.save(model, str(file))
    engine = BuiltEngine(file, KINDS["onnx"], "cpu", INPUT_NAMES, OUTPUT_NAMES)
    write_repository(repository, engine, variant_of(manifest), spec_of(manifest), manifest, name=OLDER)
    (repository / model_name(DETECTOR, OLDER) / "1" / "model.py").write_text(OLDER_MODEL, encoding="utf-8")


@pytest.fixture(scope="module")
def together(all_families: Path) -> Iterator[TritonServer]:
    with killed_server(all_families) as server:
        yield server


def test_each_family_is_built(all_families: Path) -> None:
    for name in ENSEMBLES:
        assert read_manifest(all_families, name)["verification"]["matched"] == 1


def test_an_engine_is_sent_what_it_reads(all_families: Path) -> None:
    inputs = {name: inputs_of(read_manifest(all_families, name)) for name in ENSEMBLES}
    assert inputs == {**dict.fromkeys(ENSEMBLES, INPUT_NAMES), "rtdetrv2": ("images",)}
    for name in ENSEMBLES:
        text = (all_families / model_name(DETECTOR, name) / "config.pbtxt").read_text(encoding="utf-8")
        assert ('"image_sizes"' in text) == ("image_sizes" in inputs[name])


@pytest.mark.parametrize("name", ["rtdetrv2", OLDER])
def test_an_engine_is_verified_again_with_what_it_reads(
    all_families: Path, checkpoints: dict[str, Path], name: str
) -> None:
    assert verify_repository(all_families, name, [checkpoints[name]]).matched == 1


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
        OLDER: "stretch",
    }
    assert {name: setup.rules.pixels.antialias for name, setup in setups.items()} == {
        "codetr": False,
        "rtdetrv2": True,
        "detr": True,
        "toy": True,
        OLDER: True,
    }
    assert {name: (setup.rules.suppression.kind, setup.rules.suppression.clip) for name, setup in setups.items()} == {
        "codetr": ("none", True),  # the reference data has no suppression
        "rtdetrv2": ("none", False),
        "detr": ("none", False),
        "toy": ("hard", False),
        OLDER: ("none", False),
    }


@pytest.mark.parametrize("name", [name for name in ENSEMBLES if name != OLDER])
def test_every_family_can_be_looked_into(all_families: Path, checkpoints: dict[str, Path], name: str) -> None:
    found = compare_repository(all_families, name, checkpoints[name], count=1)
    assert found.first is None
    assert found.unseen == []
    parts = {"codetr": "neck", "detr": "input_proj", "toy": "classify"}
    expected = {parts.get(name, "input_proj")}
    assert expected <= {layer.name.split(".")[0] for layer in found.layers}
    described = describe_repository(all_families, name, runs=1)
    assert expected <= {part.module.split(".")[0] for part in described.parts}
    assert described.has_times
