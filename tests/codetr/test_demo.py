import json
from contextlib import nullcontext

import pytest

from codetr.demo import prepare_repository
from serving.errors import CodetrError


def test_an_engine_of_another_model_is_not_replaced(tmp_path):
    manifest = json.dumps({"network": {"name": "cats"}, "weights": {"sha256": "0"}})
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(CodetrError, match=r"holds an engine of cats, not the demo's co_dino_demo.*another --output"):
        prepare_repository(tmp_path, lambda name: nullcontext())
    assert (tmp_path / "manifest.json").read_text() == manifest
