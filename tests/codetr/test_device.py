"""`--device` is checked before anything is loaded, with a line in place of PyTorch's traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from codetr.cli import app
from codetr.device import check_device
from demo.shapes.dataset import write_dataset
from serving.errors import CodetrError


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA", "meta", ""])
def test_what_is_no_device_is_named(device: str) -> None:
    with pytest.raises(CodetrError, match=f"--device '{device}' is not known; expected cpu, cuda, or cuda:1"):
        check_device(device)


@pytest.mark.parametrize(("seen", "device"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, seen: int, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    with pytest.raises(CodetrError, match=f"--device {device}: PyTorch .* sees {seen} GPUs here; name another, or"):
        check_device(device)
    assert check_device("cpu") == "cpu"
    if seen:
        assert check_device("cuda") == "cuda"


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["evaluate", "--annotations", "data/annotations.json", "--images", "data/images"], id="evaluate"),
        pytest.param(["bench", "canvas", "--random-weights"], id="bench canvas"),
        pytest.param(["train-demo"], id="train-demo"),
    ],
)
def test_every_command_says_it_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(Path("data"), 1, 0)
    options = ["--source", "pytorch"] if command[0] == "evaluate" else []
    result = CliRunner().invoke(app, [*command, *options, "--output", "out", "--device", "gpu"])
    assert isinstance(result.exception, CodetrError), result.output
    assert str(result.exception).startswith("--device 'gpu' is not known")
