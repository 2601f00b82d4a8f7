"""Engines: what the detector step runs. `kinds` lists them; the other modules build and load one each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.errors import CodetrError

Device = Literal["cuda", "cpu"]


class EngineError(CodetrError):
    """An engine that could not be built or loaded; the message says which step failed and why."""


class EngineOutput(NamedTuple):
    """An engine's candidates as arrays, by the contract of `codetr_detector`."""

    boxes: NDArray[np.float32]  # [B, K, 4], x1 y1 x2 y2 in 0..1 of the valid image
    scores: NDArray[np.float32]  # [B, K], best first
    labels: NDArray[np.int32]  # [B, K]


# Takes images uint8 [B, H, W, 3] RGB and image_sizes int32 [B, 2], valid (h, w), which not every engine reads.
Runner = Callable[[NDArray[np.uint8], NDArray[np.int32]], EngineOutput]


class Engine(Protocol):
    """An engine in this process: a `Runner` that can also repeat one inference without moving any data."""

    @property
    def device(self) -> Device:
        """Where it runs."""

    def __call__(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> EngineOutput:
        """Run the engine on arrays and return arrays."""

    def prepare(self, images: NDArray[np.uint8], image_sizes: NDArray[np.int32]) -> Callable[[], object]:
        """Return a call that repeats the inference of these inputs, which are on the engine's device from now on.

        On a GPU the call only queues work on the current stream, as one CUDA graph where there is one for this batch.
        """


def output_of(arrays: Any) -> EngineOutput:
    """Return three arrays or CPU tensors as an `EngineOutput`."""
    return EngineOutput(*(np.asarray(array) for array in arrays))


@contextmanager
def loading(file: Path) -> Iterator[None]:
    """Name the engine's file in what a library says that cannot load it in a `with` block; full memory stays that.

    Raises:
        EngineError: it cannot be read, or is damaged.
    """
    try:
        yield
    except (CodetrError, MemoryError):
        raise
    except Exception as error:  # each library has its own
        if "memory" in str(error):
            raise
        raise EngineError(f"{file} cannot be loaded ({first_line(error)}); build the repository again") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something, or its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
