from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from builder.variants import get_variant  # after the check for torch
from perf.engine.targets import Target, check, new_targets
from serving.errors import CodetrError
from tests.perf.engine.cases import SMALL, target


@pytest.mark.parametrize(
    ("targets", "weights", "device", "message"),
    [
        ([target()], False, "cuda", "the onnx engine runs on cpu here, not on cuda"),
        ([target(engine="caffe")], False, None, "engine 'caffe' is not known; expected onnx"),
        ([target(exists=True, built_from="0" * 64)], True, None, "was not built from .*weights.pth"),
        ([target(exists=True)], True, None, "was not built from .*weights.pth"),
        ([target()], None, None, "no checkpoint at .*weights.pth"),
    ],
    ids=["other device", "unknown engine", "other weights", "weights for random ones", "no weights"],
)
def test_impossible_measurements_are_named_at_once(
    targets: list[Target], weights: bool | None, device: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    if weights:
        path.write_bytes(b"weights")
    with pytest.raises(CodetrError, match=message):
        check(targets, None if weights is False else path, device)


def test_an_engine_has_only_its_own_precisions(tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match="the onnx engine has no precision fp16; give fp32, int8"):
        new_targets([SMALL], [(96, 64)], "onnx", "float16", [1], tmp_path)


def test_a_size_with_fewer_tokens_than_queries_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(CodetrError, match=r"height=64 and width=64 give .* 341 encoder tokens.*num_queries=900"):
        new_targets([get_variant("co_dino_r50_12e")], [(608, 608), (64, 64)], "onnx", None, [1], tmp_path)
