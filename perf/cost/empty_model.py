"""A step that does nothing: it looks at no input, waits as it is told, and answers with zeros of its outputs' sizes.

`perf.cost.floor` writes it into a repository as `model.py` of each step.
"""

import json
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# Sleeping ends late by up to about this many seconds; the rest is spent looking at the clock.
SPIN = 0.0005


class TritonPythonModel:
    """One instance of a step, a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Make the outputs of the largest batch."""
        config = json.loads(args["model_config"])
        self.seconds = float(config["parameters"]["wait_ms"]["string_value"]) / 1e3
        self.first_input = config["input"][0]["name"]
        self.outputs = {
            output["name"]: np.zeros(
                (config["max_batch_size"], *map(int, output["dims"])),
                pb_utils.triton_string_to_numpy(output["data_type"]),
            )
            for output in config["output"]
        }

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """Answer one request with so many rows of the outputs as it has of inputs."""
        end = time.perf_counter() + self.seconds
        rows = len(pb_utils.get_input_tensor_by_name(request, self.first_input).as_numpy())
        time.sleep(max(0.0, end - time.perf_counter() - SPIN))
        while time.perf_counter() < end:
            pass
        tensors = [pb_utils.Tensor(name, array[:rows]) for name, array in self.outputs.items()]
        return pb_utils.InferenceResponse(output_tensors=tensors)
