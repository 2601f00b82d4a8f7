"""The PyTorch detector itself as an engine: what built ones are compared with and measured beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from builder.detector import Detector
from builder.engines import Device, EngineOutput, output_of
from model_repository.torch_runner import float32_products


def eager_device(engine: Device) -> Device:
    """Return where PyTorch computes beside an engine: on its device, unless this PyTorch is a build for CPUs."""
    return "cpu" if engine == "cuda" and not torch.cuda.is_available() else engine


class EagerDetector:
    """An `Engine` of a PyTorch detector, on the device of its weights."""

    def __init__(self, detector: Detector, tf32: bool = False) -> None:
        """Wrap `detector`; `tf32` lets what is float32 in it be computed with 10-bit mantissas."""
        self.detector = detector
        self.tf32 = tf32

    @property
    def device(self) -> Device:
        """Where it runs, as `builder.engines.Engine` says."""
        return "cuda" if self.detector.device.type == "cuda" else "cpu"

    def __call__(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> EngineOutput:
        """Run the detector, as `builder.engines.Engine` says."""
        return output_of(tensor.cpu() for tensor in self.prepare(images, image_sizes)())

    def prepare(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> Callable[[], Sequence[Tensor]]:
        """Return a call that repeats one inference, as `builder.engines.Engine` says."""
        tensors = (torch.from_numpy(array).to(self.detector.device) for array in (images, image_sizes))
        return float32_products(self.tf32)(torch.inference_mode()(partial(self.detector, *tensors)))
