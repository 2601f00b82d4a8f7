"""A detector whose candidates spell the SHA-256 of what it was given, so that a client sees which image was answered.

`perf.fuzz.server` writes it into a repository as `codetr_detector/1/model.py`, beside its engine: `echo.json`.
"""

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from perf.fuzz.outcomes import input_digest
from serving.triton import Array, respond_together


class TritonPythonModel:
    """One instance of `codetr_detector`, a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the largest batch."""
        self.max_batch_size = json.loads(args["model_config"])["max_batch_size"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests with common batches."""
        return respond_together(pb_utils, requests, self.run, self.max_batch_size)

    def run(self, images: Array, image_sizes: Array) -> tuple[Array, Array, Array]:
        """Return for each image 32 boxes of all of it, labelled 0 to 31, whose scores are its digest's bytes."""
        digests = [list(input_digest(image, size)) for image, size in zip(images, image_sizes, strict=True)]
        scores = (np.array(digests, np.float32) + 1) / 512
        boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (*scores.shape, 1))
        labels = np.tile(np.arange(scores.shape[1], dtype=np.int32), (len(scores), 1))
        return boxes, scores, labels
