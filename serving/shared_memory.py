"""Whether /dev/shm, through which Triton's Python steps hand over their tensors, has room for a repository."""

from __future__ import annotations

import math
import os
from collections.abc import Collection
from pathlib import Path

from serving import runtime
from serving.errors import CodetrError
from serving.model_config import Message, instance_count, read_model_config

# Of the Python backend: each instance starts with so much, and its share never shrinks.
_REGION_BYTES = 1 << 20
_BYTES = {
    "BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT16": 2, "FP16": 2, "BF16": 2,
    "UINT32": 4, "INT32": 4, "FP32": 4, "UINT64": 8, "INT64": 8, "FP64": 8,
}  # fmt: skip  # one line by size
# What encoded images take is not known before; one of a camera has so much.
_ENCODED_BYTES = 4 << 20


def check_shared_memory(repository: Path, models: Collection[str] | None = None, gpus: int = 1) -> str | None:
    """Compare the free shared memory with what a repository needs, or some of its models, on so many GPUs.

    Returns:
        A line to show where full batches will not fit, else None.

    Raises:
        CodetrError: not even the start fits.
    """
    configs = sorted(repository.glob("*/config.pbtxt"))
    needs = [_need(path, gpus) for path in configs if models is None or path.parent.name in models]
    start, full = (sum(values) for values in zip(*needs, strict=True)) if needs else (0, 0)
    state = os.statvfs(runtime.SHARED_MEMORY)
    free, whole = state.f_bavail * state.f_frsize, state.f_blocks * state.f_frsize
    sizes = f"{runtime.SHARED_MEMORY} has {_mib(free)} MiB free of {_mib(whole)}"
    if free < start:
        raise CodetrError(
            f"{sizes}, and the Python steps of {repository} need {_mib(start)} to start and about {_mib(full)} for "
            f"full batches; free some (ls -l {runtime.SHARED_MEMORY}), or {runtime.MORE_ROOM}"
        )
    if free < full:
        return (
            f"{sizes}; full batches need about {_mib(full)}, and requests that find no room fail: {runtime.MORE_ROOM}"
        )
    return None


def _need(path: Path, gpus: int) -> tuple[int, int]:
    """Return the bytes that a model's Python instances take at their start and with a full batch."""
    try:
        config = read_model_config(path)
        return _sizes(config, gpus) if config.get("backend") == ["python"] else (0, 0)
    except (CodetrError, ValueError):
        return 0, 0  # Triton itself says what is wrong with a configuration


def _sizes(config: Message, gpus: int) -> tuple[int, int]:
    count = instance_count(config, gpus)
    batch = max(1, int(config.get("max_batch_size", ["1"])[0]))
    tensors = [*config.get("input", []), *config.get("output", [])]
    return count * _REGION_BYTES, count * (_REGION_BYTES + batch * sum(map(_tensor_bytes, tensors)))


def _tensor_bytes(tensor: Message) -> int:
    kind = str(tensor.get("data_type", [""])[0]).removeprefix("TYPE_")
    return (
        _BYTES[kind] * math.prod(max(1, int(dim)) for dim in tensor.get("dims", []))
        if kind in _BYTES
        else _ENCODED_BYTES
    )


def _mib(size: int) -> int:
    return round(size / 2**20)
