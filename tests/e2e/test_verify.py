"""`codetr verify` on a repository that was really built, whole and damaged."""

import json
import shutil

import onnx
import pytest
import torch
from typer.testing import CliRunner

from builder.pipeline.recheck import chosen_names, verify_repository
from builder.pipeline.verify import VerificationError
from codetr.cli import app
from serving.errors import CodetrError
from serving.launch import ServerOptions, start_server
from serving.manifest import manifest_path, sha256

ENGINE = "codetr_detector/1/model.onnx"


@pytest.fixture
def copy(repository, tmp_path):
    return shutil.copytree(repository, tmp_path / "copy")


def damage(repository):
    """Change one weight of the engine, as a failing disk would not: the file is still a valid model."""
    model = onnx.load(repository / ENGINE)
    weight = next(item for item in model.graph.initializer if item.name.endswith("query_embed.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3, 0] += 8
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, repository / ENGINE)


def test_an_untouched_repository_is_confirmed_and_reported(repository, checkpoint, tmp_path):
    options = ["--weights", str(checkpoint), "--report", str(tmp_path)]
    result = CliRunner().invoke(app, ["verify", str(repository), *options])
    assert result.exit_code == 0, result.output
    assert "codetr: engine and detector agree: 100.0%" in result.output
    again = json.loads((tmp_path / "codetr" / "verification.json").read_text())
    built = json.loads((repository / "codetr_detector" / "verification" / "verification.json").read_text())
    assert again == built


def test_a_changed_byte_is_refused_before_start_and_at_verification(copy, checkpoint):
    damage(copy)
    with pytest.raises(CodetrError, match=r"model\.onnx is not the file that was built: its SHA-256 is"):
        verify_repository(copy, "codetr", [checkpoint])
    with pytest.raises(CodetrError, match=r"model\.onnx is not the file that was built"):
        start_server(ServerOptions(copy))


def test_a_changed_weight_with_a_matching_hash_is_found(copy, checkpoint):
    damage(copy)
    manifest = json.loads(manifest_path(copy).read_text())
    manifest["files"][ENGINE] = sha256(copy / ENGINE)
    manifest_path(copy).write_text(json.dumps(manifest))
    with pytest.raises(VerificationError, match="does not reproduce the detector"):
        verify_repository(copy, "codetr", [checkpoint])


def test_other_weights_are_refused(repository, shallow_weights, tmp_path):
    other = tmp_path / "other.pth"
    torch.save(shallow_weights | {"query_head.cls_branches.1.bias": torch.zeros(8)}, other)
    with pytest.raises(CodetrError, match=r"codetr was not built from .*other\.pth \(SHA-256 .* but from tiny\.pth"):
        verify_repository(repository, "codetr", [other])


def test_weights_must_be_given(repository):
    with pytest.raises(CodetrError, match=r"give its weights: the engine codetr was built from tiny\.pth"):
        verify_repository(repository, "codetr")


def test_an_unknown_name_is_an_error_that_lists_the_known(repository):
    with pytest.raises(CodetrError, match="has no engine 'large'; it has codetr"):
        chosen_names(repository, "large")


def test_a_missing_repository_is_named(tmp_path):
    with pytest.raises(CodetrError, match="no repository at"):
        chosen_names(tmp_path / "nowhere")
