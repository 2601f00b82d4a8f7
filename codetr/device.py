"""The option --device of commands that run PyTorch: checked before anything is loaded."""

from __future__ import annotations

import re

from serving.errors import CodetrError

_DEVICE = re.compile(r"cpu|cuda(?::([0-9]{1,3}))?")


def check_device(device: str) -> str:
    """Return the device that a command is to run on; raises CodetrError for one that PyTorch does not have here."""
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise CodetrError(f"--device {device!r} is not known; expected cpu, cuda, or cuda:1 for the second GPU")
    if device != "cpu":
        import torch

        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(match[1] or 0) >= seen:
            build = torch.__version__
            raise CodetrError(f"--device {device}: PyTorch {build} sees {seen} GPUs here; name another, or give cpu")
    return device
