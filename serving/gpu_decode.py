"""JPEGs decoded and resized on a GPU: nvImageCodec decodes, PyTorch resizes. What else is sent takes the CPU's way.

Resized, the pixels are those of the CPU to the bit. Decoded they are not: a JPEG decoder may round as it likes, and a
GPU's does it differently. So what is decoded here is only what every decoder takes for the same picture. Progressive
files are left to the CPU: nobody can tell whether all their data are there, and of a cut one a GPU shows anything.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from codetr_client import jpeg
from codetr_client.containers import image_format
from codetr_client.exif import read_orientation
from serving.decode import PLUGIN_ERRORS, UPRIGHT, Image8, ImageLimits, is_within
from serving.errors import CodetrError, InvalidImageError
from serving.gpu_resize import resize_and_pad
from serving.preprocess import Preprocessed, untimed
from serving.rules import Pixels

if TYPE_CHECKING:
    from torch import Tensor

# Chroma between two samples as libjpeg has it, not the nearest one.
_OPTIONS = ":fancy_upsampling=1"


class GpuPreprocessor:
    """Decodes and fits JPEGs on one device, one after the other, from any thread.

    Args:
        height: the engine's height in pixels.
        width: the engine's width in pixels.
        limits: what is refused; such files are left to the CPU, whose error is the user's.
        rule: of the engine.
        device: the GPU's number; None computes the same on the CPU, with nvImageCodec's libjpeg-turbo.

    Raises:
        CodetrError: PyTorch or nvImageCodec is not installed, or PyTorch sees no such GPU.
    """

    def __init__(self, height: int, width: int, limits: ImageLimits, rule: Pixels, device: int | None = 0) -> None:
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # what is wrong with a file is the CPU's to say
        try:
            import torch
            from nvidia import nvimgcodec
        except ImportError as error:
            raise CodetrError(
                f"jpeg_decoder gpu: {error}; it needs PyTorch and nvImageCodec: pip install nvidia-nvimgcodec-cu13 "
                "nvidia-nvjpeg for CUDA 13, nvidia-nvimgcodec-cu12 nvidia-nvjpeg-cu12 for CUDA 12"
            ) from error
        if device is not None and device >= torch.cuda.device_count():
            raise CodetrError(
                f"jpeg_decoder gpu: PyTorch sees {torch.cuda.device_count()} GPUs, none of number {device}"
            )
        self.size, self.limits, self.rule = (height, width), limits, rule
        self.device = torch.device("cpu" if device is None else f"cuda:{device}")
        self._codec, self._lock = nvimgcodec, threading.Lock()
        # A GPU's decoder says nothing of data that end early. A CPU does, in less than the whole takes on the GPU.
        self._checks = ThreadPoolExecutor(1, "jpeg") if limits.damaged_jpeg == "refuse" else None
        self._parameters = nvimgcodec.DecodeParams(apply_exif_orientation=False)
        if device is None:
            backends = [nvimgcodec.Backend(nvimgcodec.BackendKind.CPU_ONLY)]
            self._decoder = nvimgcodec.Decoder(device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=backends)
        else:
            self._decoder = nvimgcodec.Decoder(device_id=device, options=_OPTIONS)
        # A copy to memory that the system may move goes through such a buffer of CUDA's own, in pieces.
        self._sent = torch.empty((height, width, 3), dtype=torch.uint8, pin_memory=device is not None)
        self._warm_up()

    def __call__(
        self, data: bytes, canvas: Image8, took: Callable[[str, float], object] = untimed
    ) -> Preprocessed | None:
        """Fill `canvas`, uint8 `[height, width, 3]`, as `serving.preprocess.preprocess` does; `took` is as there.

        Returns:
            None where the file is none for a GPU, or the GPU cannot decode it or has no memory left: decode it as if
            this were not here.
        """
        import torch

        started = perf_counter()
        markers = self._markers(data)
        if markers is None:
            return None
        is_whole = None if self._checks is None else self._checks.submit(jpeg.reaches_the_end, markers, data)
        try:
            with self._lock:
                image = self._decoded(data, markers)
                if image is None:
                    return None
                decoded = perf_counter()
                fitted, size = resize_and_pad(image, *self.size, self.rule)
                self._sent.copy_(fitted)
                canvas[...] = self._sent.numpy()
        except torch.OutOfMemoryError:  # beside the engine
            return None
        resized = perf_counter()
        if is_whole is not None and not is_whole.result():
            return None
        took("decode", decoded - started + perf_counter() - resized)
        took("resize", resized - decoded)
        return Preprocessed(canvas, size, (image.shape[0], image.shape[1]))

    def _warm_up(self) -> None:
        """Decode and resize a picture, so that what a GPU loads with the first one is there before a request is."""
        height, width = self.size
        _, data = cv2.imencode(".jpg", np.zeros((height // 2 + 1, width // 2 + 1, 3), np.uint8))
        self(data.tobytes(), np.empty((height, width, 3), np.uint8))

    def _markers(self, data: bytes) -> jpeg.Jpeg | None:
        """Return what the markers say; None of a file that the CPU shall decode, or refuse."""
        if image_format(data) != "JPEG" or "JPEG" not in self.limits.formats or len(data) > self.limits.max_bytes:
            return None
        try:
            markers = jpeg.read_jpeg(data)
            suits = markers.is_usual and is_within(markers.width, markers.height, self.limits)
            return markers if suits and jpeg.fault(markers, data) is None else None
        except (InvalidImageError, *PLUGIN_ERRORS):
            return None

    def _decoded(self, data: bytes, markers: jpeg.Jpeg) -> Tensor | None:
        """Return the upright picture, uint8 `[h, w, 3]`; None where it is not what the markers say."""
        try:
            stream = self._codec.CodeStream(jpeg.without_metadata(data, markers))
            decoded = self._decoder.decode(stream, params=self._parameters)
        except RuntimeError:
            return None
        if decoded is None or tuple(decoded.shape) != (markers.height, markers.width, 3):
            return None
        image = self._tensor(decoded)
        transpose, flip = UPRIGHT.get(read_orientation(markers.exif), (False, None))
        image = image.transpose(0, 1) if transpose else image
        return image if flip is None else image.flip({0: (0,), 1: (1,), -1: (0, 1)}[flip])

    def _tensor(self, decoded: Any) -> Tensor:
        import torch

        if self.device.type == "cpu":
            return torch.from_numpy(np.asarray(decoded))
        return torch.utils.dlpack.from_dlpack(decoded)
