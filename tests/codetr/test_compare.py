"""`codetr compare` and `codetr inspect` on the repository that the tests build once."""

import json
import re
import shutil

import pytest
from PIL import Image
from typer.testing import CliRunner

from codetr.cli import app
from serving.errors import CodetrError
from serving.manifest import manifest_path
from tests.builder.inspect.damage import damage_onnx
from tests.builder.inspect.small import KINDS


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)


def test_compare_draws_and_writes_its_report(repository, checkpoint, tmp_path):
    output = tmp_path / "report"
    result = run("compare", repository, "--weights", checkpoint, "--samples", 1, "--output", output)
    assert result.exit_code == 0, result.output
    assert "tensors are within their tolerance" in result.output
    assert "encoder" in result.output
    content = json.loads((output / "compare.json").read_text())
    assert content["agrees"] is True
    assert len(content["layers"]) > 75
    with Image.open(output / "compare.png") as picture:
        assert picture.size[0] > 500
    assert (output / "compare.svg").read_text().startswith("<svg")
    assert "| backbone.patch_embed | Conv2d |" in (output / "compare.md").read_text()


def test_compare_fails_at_the_damaged_layer(repository, checkpoint, tmp_path):
    copy = shutil.copytree(repository, tmp_path / "repository")
    file = copy / "codetr_detector" / "1" / "model.onnx"
    damage_onnx(file, file, "decoder.layers.0.ffn.0", KINDS[1])
    words = (
        "compare",
        copy,
        "--weights",
        checkpoint,
        "--samples",
        1,
        "--modules",
        "decoder*",
        "--output",
        tmp_path / "out",
    )
    result = run(*words)
    assert isinstance(result.exception, CodetrError)
    assert "the engine leaves PyTorch at decoder.layers.0.ffn.0" in str(result.exception)
    assert "is not the file that was built" in result.output
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert content["first"]["name"] == "decoder.layers.0.ffn.0"
    assert content["first"]["suspects"][:2] == ["decoder.layers.0.ffn.0.weight", "decoder.layers.0.ffn.0.bias"]
    assert isinstance(run(*words).exception, CodetrError), "an earlier report is replaced"


def test_inspect_prints_and_writes_json_and_a_page(repository, tmp_path):
    result = run("inspect", repository, "--runs", 1, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for word in ("module", "backbone", "slowest", "float32", "one inference"):
        assert word in result.output
    content = json.loads((tmp_path / "out" / "inspect.json").read_text())
    assert content["kind"] == "anatomy"
    assert content["by_module"][0]["parts"] > 0
    assert "<svg" in (tmp_path / "out" / "inspect.html").read_text()


@pytest.mark.parametrize("command", ["compare", "inspect"])
def test_nobodys_files_are_overwritten(repository, checkpoint, tmp_path, command):
    name = "compare.json" if command == "compare" else "inspect.html"
    (tmp_path / name).write_text("mine")
    words = ("--weights", checkpoint) if command == "compare" else ()
    result = run(command, repository, *words, "--output", tmp_path)
    assert isinstance(result.exception, CodetrError)
    assert "not from an earlier run of this kind" in str(result.exception)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("engine", "words", "message"),
    [
        ("onnx", ["inspect", "--weights", "w.pth"], "--weights: without effect on an engine of kind onnx for a CPU"),
        ("torch", ["inspect", "--tensorrt-python", "python"], "--tensorrt-python: .* of kind torch for a CPU"),
        ("torch of a GPU", ["inspect", "--weights", "w.pth"], "--weights: .* of kind torch for a GPU"),
        ("onnx", ["compare", "--built-from", "w.pth", "--tensorrt-python", "p"], "--built-from, --tensorrt-python: "),
        (
            "torch",
            ["compare", "--tensorrt-python", "p"],
            "--tensorrt-python: without effect on an engine of kind torch",
        ),
        ("tensorrt", ["compare", "--as-built", "--built-from", "w.pth"], "--built-from: .* with --as-built"),
    ],
)
def test_options_of_other_engines_are_refused(repository, tmp_path, engine, words, message):
    copy = shutil.copytree(repository, tmp_path / "repository")
    path = manifest_path(copy)
    kind = {"engine": engine.split()[0], "device": "cuda" if engine.endswith("GPU") else "cpu"}
    path.write_text(json.dumps(json.loads(path.read_text()) | kind))
    result = run(*words, copy, "--output", tmp_path / "out")
    assert isinstance(result.exception, CodetrError)
    assert re.match(message, str(result.exception))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["compare", "inspect"])
def test_what_is_no_repository_is_named(tmp_path, command):
    result = run(command, tmp_path)
    assert isinstance(result.exception, CodetrError)
    assert "no repository at" in str(result.exception)
