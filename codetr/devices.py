"""The option --device of commands that run PyTorch's own detector."""

from __future__ import annotations

import re

from serving.errors import CodetrError


def check_device(device: str) -> None:
    """Check that PyTorch can run on `device`: cpu, cuda, or cuda:N for the GPU of that number.

    Raises:
        CodetrError: it is none of these, or there is no such GPU.
    """
    import torch

    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", device):
        raise CodetrError(f"--device {device!r}: expected cpu, cuda, or cuda:N for one of several GPUs")
    kind, _, number = device.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise CodetrError(f"--device {device}: PyTorch finds no NVIDIA GPU here; give --device cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise CodetrError(f"--device {device}: there are {torch.cuda.device_count()} GPUs here, counted from 0")
