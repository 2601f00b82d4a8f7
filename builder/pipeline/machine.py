"""What a build needs of the machine, and what to do where the machine refuses it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from builder.detector import Detector
from builder.pipeline.export import InputSpec
from serving.errors import CodetrError

# Files of the weights' size that exist at once while an engine is made and copied; on a GPU the float32 reference, the
# detector that was exported, and the engine.
WORKING_COPIES = 3
# Of one image's pixel: Swin-L and R50 in PyTorch float32 take 1900 bytes above their weights on an H200 at any size
# from 608x608 on, most of it in the encoder, and half as much in float16.
ACTIVATION_BYTES = 1900
GPU_WORKSPACE = 2**30  # for the compilers' trials of kernels


def check_gpu_memory(detector: Detector, spec: InputSpec) -> None:
    """Refuse to start where the GPU has no room for detector, engine and the activations of the largest batch.

    Raises:
        CodetrError: with the GiB that are free and those that the build needs.
    """
    activations = spec.max_batch_size * spec.height * spec.width * ACTIVATION_BYTES
    needed = WORKING_COPIES * _size(detector) + activations + GPU_WORKSPACE
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        raise CodetrError(
            f"{torch.cuda.get_device_name()} has {free / 2**30:.1f} GiB free, the build needs about "
            f"{needed / 2**30:.1f} GiB; end what else runs there (nvidia-smi lists it), or choose a smaller batch or "
            "size"
        )


def check_disk(detector: Detector, repository: Path) -> None:
    """Refuse to start where neither the engine made aside nor its copy would find room.

    Raises:
        CodetrError: with the GiB that are free and those that it needs, or there is no folder for temporary files.
    """
    existing = next(folder for folder in (repository, *repository.absolute().parents) if folder.is_dir())
    try:
        temporary = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise CodetrError("there is no folder for temporary files; set TMPDIR to one that can be written") from error
    for folder in (existing, temporary):
        free, needed = shutil.disk_usage(folder).free, WORKING_COPIES * _size(detector)
        if free < needed:
            raise CodetrError(
                f"{folder} has {free / 2**30:.1f} GiB free, the build needs {needed / 2**30:.1f} GiB; free some, or "
                "choose another disk for TMPDIR and the repository"
            )


def _size(detector: Detector) -> int:
    """Return the bytes of a detector's weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in detector.state_dict().values())


def remedy_for(error: Exception) -> str | None:
    """Return what to do about an error of the machine; None for any other."""
    if isinstance(error, torch.OutOfMemoryError):
        return "end what else runs on the GPU (nvidia-smi lists it), or choose a smaller batch or size"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):  # a RuntimeError of PyTorch
        return "memory is full: end other programs, or choose a smaller batch or size"
    if isinstance(error, OSError):
        return "look at that path's disk and permissions; TMPDIR and the folder of the repository choose other places"
    return None
