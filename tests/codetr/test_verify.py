"""`codetr verify` as a user meets it: each fault is one line that says what to do."""

import json
import sys

import pytest

from builder.pipeline.export import InputSpec
from builder.pipeline.manifest import describe
from codetr import cli
from serving.manifest import FILES, read_manifest
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
