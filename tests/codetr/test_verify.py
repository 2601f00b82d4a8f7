"""`codetr verify` as a user meets it: each fault is one line that says what to do."""

import json
import sys

import pytest

from builder.pipeline.export import InputSpec
from builder.pipeline.manifest import describe
from codetr import cli
from tests.smallest import SMALLEST, built


@pytest.mark.parametrize("key", ["seed", "dynamic_batch", "weights"])
def test_a_manifest_without_a_key_is_named(tmp_path, monkeypatch, capsys, key):
    manifest = describe(SMALLEST, None, 0, built(), "float32", InputSpec(64, 96), None)
    del manifest[key]
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "files": {}}))
    monkeypatch.setattr(sys, "argv", ["codetr", "verify", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    assert f"{tmp_path / 'manifest.json'} has no '{key}'; build the repository again" in capsys.readouterr().err
