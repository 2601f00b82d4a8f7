"""Another family, which nothing in the builder knows, goes the whole way: the toy of `tests/toy_family`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from builder import CheckpointError, from_mmdet_config, get_variant, load_detector
from builder.engines.kinds import KINDS
from builder.families import FAMILIES, presets
from builder.family import VariantError
from builder.pipeline.build import BuildOptions, build_repository
from builder.pipeline.export import InputSpec
from builder.pipeline.manifest import variant_of
from builder.pipeline.recheck import verify_repository
from codetr import cli
from perf.accuracy.detectors import built_variant, onnx_detect, pytorch_detect
from perf.engine.flops import TOTAL, count_flops
from serving.manifest import read_manifest
from tests.toy_family import SMALL, TOY, ToyConfig, ToyDetector, toy_weights

ROOT = Path(__file__).parents[2]
SPEC = InputSpec(64, 96, 2)


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """The toy among the families: one entry of a plain dict."""
    monkeypatch.setitem(FAMILIES, "toy", TOY)


@pytest.fixture
def weights(tmp_path):
    """A checkpoint by its training program's names."""
    torch.save({"state_dict": toy_weights()}, tmp_path / "toy.pth")
    return tmp_path / "toy.pth"


def test_its_presets_and_configs_are_found_by_name_and_type():
    assert get_variant("toy_small") is SMALL
    assert presets()["co_dino_demo"].family == "co_dino"
    assert from_mmdet_config({"type": "Toy", "classes": 7}, "mine") == ToyConfig(
        "mine", num_classes=7, max_detections=20
    )


def test_its_checkpoint_loads_by_its_own_names(weights):
    detector = load_detector("toy_small", weights)
    assert isinstance(detector, ToyDetector)
    assert detector.variant == SMALL
    with pytest.raises(CheckpointError, match=r"does not fit variant 'toy_small': 3 keys differ"):
        load_detector("toy_small", {"other": torch.zeros(1)})


def test_it_is_built_verified_and_evaluated(tmp_path, weights, capsys):
    options = BuildOptions(SMALL, SPEC, weights)
    assert build_repository(options, tmp_path / "repository").matched == 1
    manifest = read_manifest(tmp_path / "repository")
    assert manifest["network"]["family"] == "toy"
    assert variant_of(json.loads(json.dumps(manifest))) == SMALL
    assert verify_repository(tmp_path / "repository", "codetr", [weights]).matched == 1
    detect, names = onnx_detect(tmp_path / "repository", "codetr")
    variant, setup = built_variant(tmp_path / "repository", "codetr")
    assert (names, variant, setup.rules) == (SMALL.class_names, SMALL, SMALL.rules)
    image = (ROOT / "demo/sample.jpg").read_bytes()
    expected = pytorch_detect("toy_small", weights, "float32", "cpu", setup)[0](image)
    torch.testing.assert_close(torch.from_numpy(detect(image).boxes), torch.from_numpy(expected.boxes))
    assert len(expected) > 0
    config = (tmp_path / "repository/codetr_postprocess/config.pbtxt").read_text()
    assert 'string_value: "hard"' in config


def test_its_engine_is_measured(tmp_path, weights):
    options = ["--weights", str(weights), "--engine", "onnx", "--size", "96x64", "--seconds", "0.1", "--device", "cpu"]
    command = ["bench", "engine", "toy_small", *options, "--output", str(tmp_path / "bench")]
    result = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    pytorch, engine = json.loads((tmp_path / "bench" / "engine.json").read_text())["cases"]
    assert (pytorch["variant"], pytorch["implementation"], engine["implementation"]) == ("toy_small", "PyTorch", "onnx")
    assert engine["agreement"]["matched"] == 1


def test_the_page_tells_all_that_a_family_needs(tmp_path):
    """The page's line, in a copy of the tree whose `builder` has the toy's folder: its commands and layers work."""
    copied = ("builder", "clients", "codetr", "demo", "examples", "model_repository", "perf", "plugin_src", "serving")
    for folder in copied:
        ignored = shutil.ignore_patterns("__pycache__", "results", "weights", "*.egg-info")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/test_layering.py", tmp_path / "tests")
    (tmp_path / "builder/toy").mkdir()
    (tmp_path / "builder/toy/__init__.py").touch()
    shutil.copy(ROOT / "tests/toy_family/__init__.py", tmp_path / "builder/toy/family.py")

    families = tmp_path / "builder/families.py"
    page = (ROOT / "docs/adding-a-model.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    given, entry = (line for line in block.splitlines(keepends=True) if "TOY" in line)
    before, assignment, entries = families.read_text(encoding="utf-8").partition("FAMILIES: dict[str, Family] = {\n")
    given = given.replace("tests.toy_family", "builder.toy.family")  # where this copy has it
    before = before.replace("from builder.family import", f"{given}from builder.family import")
    families.write_text(before + assignment + entry + entries, encoding="utf-8")

    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "clients"), "COLUMNS": "200"}

    def run(*arguments):
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    program = ("-c", "from codetr.cli import main; main()")
    assert "toy_small" in run(*program, "variants")
    run(*program, "build", "toy_small", "--random-weights", "--repository", "built")
    assert read_manifest(tmp_path / "built")["network"]["family"] == "toy"
    assert read_manifest(tmp_path / "built")["verification"]["matched"] == 1
    run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "tests/test_layering.py")


def test_its_operations_are_counted():
    assert count_flops(SMALL, SPEC)[TOTAL] == 2 * 2 * 64 * 96 * 3 * 3  # batch, multiply and add, pixels, classes


def test_it_is_among_the_variants(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["codetr", "variants"])
    with pytest.raises(SystemExit):
        cli.main()
    line = next(line for line in capsys.readouterr().out.splitlines() if "toy_small" in line)
    assert "toy" in line.split()
    assert "64 x 96" in line


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_without_the_operator_wants_no_compiler_for_it(kind, monkeypatch):
    def wanted(*_):
        pytest.fail("asked for the operator or the plugin")

    monkeypatch.setattr("builder.engines.torch.check_cuda_operator", wanted)
    monkeypatch.setattr("builder.engines.tensorrt.plugin_library", wanted)
    monkeypatch.setattr("builder.engines.tensorrt.route.version_of", lambda _: "11.4.0.106")
    monkeypatch.setattr("builder.engines.torch.device", lambda: "cuda")
    monkeypatch.setenv("CXX", "true")
    KINDS[kind].module.check(SMALL.uses_operator)


@pytest.mark.parametrize("names", ["abc", ("a", 1, "b"), ("a", "b")])
def test_class_names_are_checked_for_every_family(names):
    with pytest.raises(VariantError, match="'x'"):
        ToyConfig("x", num_classes=3, class_names=names)


def test_every_family_is_listed():
    """That nothing else of the builder names one is in tests/test_layering.py."""
    folders = {path.name for path in (ROOT / "builder").iterdir() if (path / "family.py").is_file()}
    assert folders == set(FAMILIES) - {"toy"}
