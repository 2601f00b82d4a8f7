"""The accuracy of trained weights is measured and written into their file, which else stays as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from builder.co_dino.presets import DEMO_VARIANT
from demo import DEMO_WEIGHTS
from perf.accuracy.held_out import record_accuracy
from serving.errors import CodetrError


def test_the_measured_accuracy_is_in_the_metadata(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copyfile(DEMO_WEIGHTS, weights)
    result = record_accuracy(DEMO_VARIANT, weights, tmp_path / "held-out", "cpu", images=3)
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    assert 0.5 < result["ap"] <= 1
    assert metadata["ap"] == f"{result['ap']:.4f}"
    assert metadata["ap_measured_on"] == "3 images of data set 2, float32, cpu"
    assert metadata["class_names"].startswith("circle,")
    before, after = load_file(DEMO_WEIGHTS), load_file(weights)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    again = record_accuracy(DEMO_VARIANT, weights, tmp_path / "held-out", "cpu", images=3)
    assert again["ap"] == result["ap"]  # the metadata have changed, and the weights have not
    save_file({**after, "class_head.bias": after["class_head.bias"] + 1}, weights)
    with pytest.raises(CodetrError, match="of other weights"):
        record_accuracy(DEMO_VARIANT, weights, tmp_path / "held-out", "cpu", images=3)
