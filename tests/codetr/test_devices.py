from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from codetr import cli
from codetr.devices import check_device
from serving.errors import CodetrError


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "cudax"])
def test_what_names_no_device_is_refused(device: str) -> None:
    with pytest.raises(CodetrError, match="expected cpu, cuda, or cuda:N"):
        check_device(device)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device("cpu")
    with pytest.raises(CodetrError, match="--device cuda: PyTorch finds no NVIDIA GPU here; give --device cpu"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda")
    check_device("cuda:1")
    with pytest.raises(CodetrError, match="--device cuda:2: there are 2 GPUs here, counted from 0"):
        check_device("cuda:2")


@pytest.mark.parametrize("words", [("bench", "canvas", "--random-weights"), ("train-demo", "--output", "demo")])
def test_commands_say_so_before_they_begin(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli.app, [*words, "--device", "gpu"])
    assert isinstance(done.exception, CodetrError)
    assert "--device 'gpu': expected cpu, cuda, or cuda:N" in str(done.exception)
