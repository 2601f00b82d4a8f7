"""`codetr verify` as a user meets it: each fault is one line that says what to do."""

import json
import sys
from contextlib import nullcontext

import pytest

from builder.pipeline.export import InputSpec
from builder.pipeline.manifest import describe
from builder.pipeline.recheck import check_weights
from codetr import cli
from serving.errors import CodetrError
from serving.manifest import FILES, read_manifest, sha256
from tests.smallest import SMALLEST, built
from tests.tiny_engine import write_tiny_repository


@pytest.mark.parametrize("key", ["seed", "dynamic_batch", "weights"])
def test_a_manifest_without_a_key_is_named(tmp_path, monkeypatch, capsys, key):
    manifest = describe(SMALLEST, None, 0, built(), "float32", InputSpec(64, 96), None)
    del manifest[key]
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "files": {}}))
    monkeypatch.setattr(sys, "argv", ["codetr", "verify", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    assert f"{tmp_path / 'manifest.json'} has no '{key}'; build the repository again" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["report.md", "verification.json", "1-image.jpg", "notes.txt"])
def test_a_folder_of_somebody_else_gets_no_report(tmp_path, monkeypatch, capsys, name):
    folder = tmp_path / "report" / "codetr"
    folder.mkdir(parents=True)
    (folder / name).write_text("precious")
    monkeypatch.setattr("builder.pipeline.recheck.chosen_names", lambda repository, name: ["codetr"])
    monkeypatch.setattr(
        "builder.pipeline.recheck.verify_repository", lambda *arguments: pytest.fail("something was overwritten")
    )
    monkeypatch.setattr(sys, "argv", ["codetr", "verify", str(tmp_path), "--report", str(tmp_path / "report")])
    with pytest.raises(SystemExit):
        cli.main()
    assert str(folder) in (error := capsys.readouterr().err)
    assert "holds something else than a report" in error
    assert (folder / name).read_text() == "precious"


def test_an_earlier_report_is_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "report" / "codetr"
    folder.mkdir(parents=True)
    (folder / "verification.json").write_text('{"agrees": true}')
    asked = []
    monkeypatch.setattr("builder.pipeline.recheck.chosen_names", lambda repository, name: ["codetr"])
    monkeypatch.setattr("builder.pipeline.recheck.verify_repository", lambda *arguments: asked.append(arguments[-1]))
    monkeypatch.setattr(sys, "argv", ["codetr", "verify", str(tmp_path), "--report", str(tmp_path / "report")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert asked == [folder]


def test_only_the_files_are_checked_on_request(tmp_path, monkeypatch, capsys):
    repository = write_tiny_repository(tmp_path / "models")
    monkeypatch.setattr(
        "builder.pipeline.recheck.verify_repository", lambda *arguments: pytest.fail("an engine was run")
    )
    monkeypatch.setattr(sys, "argv", ["codetr", "verify", str(repository), "--files-only"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "is complete, and its engines are those that were built" in capsys.readouterr().out

    file = next(iter(read_manifest(repository)[FILES]))
    (repository / file).write_text("changed")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert f"{file} is not the file that was built" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--weights", "--name", "--verify-images", "--verify-annotations", "--report", "--config"]
)
def test_what_needs_an_engine_is_refused_beside_it(tmp_path, monkeypatch, capsys, option):
    monkeypatch.setattr(sys, "argv", ["codetr", "verify", str(tmp_path), "--files-only", option, "x"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert "--files-only computes nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        pytest.param(
            ["drawn"], ["cats.pth"], r"cats\.pth \(of .*: drawn from random weights\); leave it out", id="random"
        ),
        pytest.param(
            ["cats", "drawn"], ["cats.pth", "dogs.pth"], r"dogs\.pth .*cats from cats\.pth, drawn", id="one more"
        ),
        pytest.param(["cats", "drawn"], ["cats.pth"], None, id="its own"),
        pytest.param(["cats"], ["dogs.pth"], None, id="not its own, which the comparison says"),
        pytest.param(["drawn"], [], None, id="none"),
    ],
)
def test_weights_that_nothing_is_compared_with_are_refused(tmp_path, monkeypatch, names, given, expected):
    for file in ("cats.pth", "dogs.pth"):
        (tmp_path / file).write_text(file)
    origins = {"cats": {"file": "cats.pth", "sha256": sha256(tmp_path / "cats.pth")}, "drawn": None}
    monkeypatch.setattr("builder.pipeline.recheck.read_manifest", lambda repository, name: {"weights": origins[name]})
    refused = nullcontext() if expected is None else pytest.raises(CodetrError, match=f"no engine .* from .*{expected}")
    with refused:
        check_weights(tmp_path, names, [tmp_path / file for file in given])
