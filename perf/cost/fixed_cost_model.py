"""A detector that takes `cost_ms` for every batch, whatever is in it, and leaves the CPU free meanwhile, as a GPU does.

`perf.cost.repository` writes it into a repository as `codetr_detector/1/model.py`, beside its engine: `cost.json`.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from perf.preprocess.run import candidates
from serving.shared_engine import EngineGuest, Kind, join
from serving.triton import Array, output_dims, respond_together

# Sleeping ends late by up to about this many seconds; the rest is spent looking at the clock.
SPIN = 0.0005


class FixedCost:
    """Computes one batch after the other, in the order in which they came, and returns the same for each image."""

    def __init__(self, seconds: float, answer: Sequence[Array], size: Sequence[int]) -> None:
        self._seconds, self._answer, self._size = seconds, answer, size
        self._turn = threading.Lock()
        self._free_at = 0.0

    def __call__(self, *inputs: Array) -> list[Array]:
        """Wait as long as a batch takes."""
        self._compute()
        return [np.repeat(each[None], len(inputs[0]), axis=0) for each in self._answer]

    def tensors(self) -> tuple[Sequence[Kind], Sequence[Kind]]:
        """Return shape and type of one image's inputs and outputs."""
        return [((*self._size, 3), "uint8"), ((2,), "int32")], [(each.shape, each.dtype.name) for each in self._answer]

    def adopt(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[int], None]:
        """Return what does as a call, into `outputs`."""

        def run(batch: int) -> None:
            self._compute()
            for output, each in zip(outputs, self._answer, strict=True):
                output[:batch] = each

        return run

    def release(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Do nothing: nothing was kept."""

    def _compute(self) -> None:
        with self._turn:
            end = self._free_at = max(self._free_at, time.perf_counter()) + self._seconds
        time.sleep(max(0.0, end - time.perf_counter() - SPIN))
        while time.perf_counter() < end:
            pass


class TritonPythonModel:
    """One instance of `codetr_detector`, a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the cost and make the candidates that every image gets; a guest waits for the instance that does."""
        config = json.loads(args["model_config"])
        height, width, _ = map(int, config["input"][0]["dims"])

        def load() -> FixedCost:
            engine = Path(args["model_repository"], args["model_version"], "cost.json")
            seconds = json.loads(engine.read_text(encoding="utf-8"))["cost_ms"] / 1e3
            return FixedCost(seconds, candidates(output_dims(config, "boxes")[0]), (height, width))

        self.max_batch_size = config["max_batch_size"]
        self.run, _ = join(args, load)
        self.buffers = self.run.buffers if isinstance(self.run, EngineGuest) else None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests with common batches."""
        return respond_together(pb_utils, requests, self.run, self.max_batch_size, None, self.buffers)
