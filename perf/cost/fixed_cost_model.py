"""A detector that takes `cost_ms` for every batch, whatever is in it, and leaves the CPU free meanwhile, as a GPU does.

`perf.cost.repository` writes it into a repository as `codetr_detector/1/model.py`, beside its engine: `cost.json`.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from perf.preprocess.run import candidates
from serving.triton import Array, output_dims, respond_together

# Sleeping ends late by up to about this many seconds; the rest is spent looking at the clock.
SPIN = 0.0005


class TritonPythonModel:
    """One instance of `codetr_detector`, a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the cost and make the candidates that every image gets."""
        config = json.loads(args["model_config"])
        engine = Path(args["model_repository"], args["model_version"], "cost.json")
        self.seconds = json.loads(engine.read_text(encoding="utf-8"))["cost_ms"] / 1e3
        self.max_batch_size = config["max_batch_size"]
        self.candidates = candidates(output_dims(config, "boxes")[0])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests with common batches."""
        return respond_together(pb_utils, requests, self.run, self.max_batch_size)

    def run(self, images: Array, image_sizes: Array) -> tuple[Array, Array, Array]:
        """Wait as long as a batch takes; return the same candidates for each image."""
        end = time.perf_counter() + self.seconds
        time.sleep(max(0.0, self.seconds - SPIN))
        while time.perf_counter() < end:
            pass
        boxes, scores, labels = (np.repeat(each[None], len(images), axis=0) for each in self.candidates)
        return boxes, scores, labels
